"""What `tokenfleet top` makes of two looks at a fleet, and how it draws it."""

from io import StringIO

import msgspec
from rich.console import Console

from ops.fleet_view import Process, SlowRequest, Snapshot
from ops.top import Screen, screen_of
from ops.top_screen import drawn


def process(role: str, *, generation: int = 1, cpu_s: float = 0.0, **values: float) -> Process:
    return Process(role, 0, 4711, "ready", generation, generation - 1, 0.1, cpu_s, 50_000_000, values)


def snapshot(time_s: float, *processes: Process, slowest: tuple[SlowRequest, ...] = ()) -> Snapshot:
    return Snapshot(time_s, False, (process("broker"), *processes), slowest)


def worker(tokens: float, lag_sum_s: float, lag_count: float, generation: int = 1, cpu_s: float = 0.0) -> Process:
    names = {
        "vllm:generation_tokens": tokens,
        "tokenfleet:event_loop_lag_seconds_sum": lag_sum_s,
        "tokenfleet:event_loop_lag_seconds_count": lag_count,
        "tokenfleet:tokenizer_cache_hits": tokens,
        "tokenfleet:tokenizer_cache_misses": tokens,
    }
    return process("worker", generation=generation, cpu_s=cpu_s, **names)


def rendered(screen: Screen) -> str:
    out = StringIO()
    Console(file=out, width=200).print(drawn(screen))
    return out.getvalue()


def test_rates_are_what_was_added_between_the_looks() -> None:
    before = snapshot(10.0, worker(1000, 1.0, 100))
    now = snapshot(12.0, worker(1500, 1.02, 104))

    row = screen_of(before, now).workers[0]

    assert row.tokens_per_s == 250
    assert round(row.loop_lag_ms, 6) == 5
    assert row.cache_hit_share == 0.5


def test_an_idle_interval_has_no_ratios() -> None:
    same = worker(1000, 1.0, 100)

    screen = screen_of(snapshot(10.0, same, process("engine")), snapshot(11.0, same, process("engine")))

    assert screen.workers[0].cache_hit_share is None
    assert (screen.engines[0].step_ms, screen.engines[0].prefix_hit_share) == (None, None)
    assert " - " in rendered(screen)


def test_a_replaced_process_has_its_own_processor_time_and_the_places_totals() -> None:
    before = snapshot(10.0, worker(1000, 1.0, 100, cpu_s=50))
    now = snapshot(11.0, worker(1100, 1.0, 100, generation=2, cpu_s=1))

    row = screen_of(before, now).workers[0]

    assert (row.cpu_share, row.tokens_per_s, row.restarts) == (1.0, 100, 1)


def test_the_slowest_show_where_their_time_went() -> None:
    slow = SlowRequest("req-1", "/v1/completions", 200, 1000.0, "length", 0, 10, 0, 5, 10.0, 600.0, 90.0, 250.0, 700.0)
    screen = screen_of(snapshot(10.0, worker(0, 0, 0)), snapshot(11.0, worker(0, 0, 0), slowest=(slow,)))

    assert slow.other_ms == 50.0
    assert "queue 600 ms, length" in rendered(screen)


def test_a_screen_survives_json() -> None:
    screen = screen_of(snapshot(10.0, worker(0, 0, 0)), snapshot(11.0, worker(1, 0, 0), process("engine")))

    assert msgspec.json.decode(msgspec.json.encode(screen), type=Screen) == msgspec.structs.replace(screen)
