"""`tokenfleet top`: the running fleet, live in the terminal. A row per worker and engine, then the slowest requests.

Two looks at the ops port's /fleet make one screen; the fleet computes nothing for it. `--once --json` prints the same
numbers for scripts.
"""

import signal
import sys
import time
import urllib.error
import urllib.request
from io import StringIO
from pathlib import Path

import msgspec
from msgspec import Struct

from ops import exit_codes
from ops.fleet_view import Process, SlowRequest, Snapshot
from ops.run_folder import the_ops_url

TIMEOUT_S = 5.0
SVG_COLUMNS = 132


class WorkerRow(Struct, frozen=True):
    worker: int
    pid: int
    state: str
    restarts: int
    requests_per_s: float
    tokens_per_s: float
    loop_lag_ms: float  # mean of the interval
    cache_hit_share: float | None  # of the tokenizer's segments in the interval; None: it encoded nothing
    ring_fill_share: float
    open_connections: int
    open_streams: int
    oldest_stream_s: float
    cpu_share: float
    resident_mb: float


class EngineRow(Struct, frozen=True):
    engine: int
    pid: int
    state: str
    restarts: int
    steps_per_s: float
    step_ms: float | None  # mean of the interval; None: it made no step
    tokens_per_step: float | None
    requests_running: int
    requests_waiting: int
    kv_usage_share: float
    prefix_hit_share: float | None
    preemptions: int
    full_ring_waits: int
    cpu_share: float
    resident_mb: float


class Screen(Struct, frozen=True):
    interval_s: float
    is_draining: bool
    broker_state: str
    broker_queue: int
    requests_per_s: float
    tokens_per_s: float
    workers: list[WorkerRow]
    engines: list[EngineRow]
    slowest: list[SlowRequest]


class Growth:
    """One process between two looks. A process that was replaced has grown from nothing."""

    def __init__(self, before: Process | None, now: Process, interval_s: float) -> None:
        self.now, self._interval_s = now, interval_s
        self._before = before
        self._has_old_process = before is not None and before.generation == now.generation

    def by(self, name: str) -> float:
        """The page outlives its process, so its totals go on."""
        before = self._before.values.get(name, 0.0) if self._before else 0.0
        return self.now.values.get(name, 0.0) - before

    def per_s(self, name: str) -> float:
        return self.by(name) / self._interval_s

    def ratio(self, part: str, *wholes: str) -> float | None:
        whole = sum(self.by(name) for name in wholes)
        return self.by(part) / whole if whole > 0 else None

    @property
    def cpu_share(self) -> float:
        before_s = self._before.cpu_s if self._before and self._has_old_process else 0.0
        return max(0.0, self.now.cpu_s - before_s) / self._interval_s


def screen_of(before: Snapshot, now: Snapshot) -> Screen:
    interval_s = max(now.time_s - before.time_s, 1e-3)
    old = {(process.role, process.index): process for process in before.processes}

    def growth(role: str) -> list[Growth]:
        return [Growth(old.get((role, process.index)), process, interval_s) for process in now.of_role(role)]

    workers = [_worker_row(worker) for worker in growth("worker")]
    broker = now.of_role("broker")[0]
    return Screen(
        interval_s=interval_s,
        is_draining=now.is_draining,
        broker_state=broker.state,
        broker_queue=int(broker.values.get("tokenfleet:broker_queue_depth", 0)),
        requests_per_s=sum(worker.requests_per_s for worker in workers),
        tokens_per_s=sum(worker.tokens_per_s for worker in workers),
        workers=workers,
        engines=[_engine_row(engine) for engine in growth("engine")],
        slowest=list(now.slowest),
    )


def _worker_row(worker: Growth) -> WorkerRow:
    now = worker.now
    lag_s = worker.ratio("tokenfleet:event_loop_lag_seconds_sum", "tokenfleet:event_loop_lag_seconds_count")
    return WorkerRow(
        worker=now.index,
        pid=now.pid,
        state=now.state,
        restarts=now.restarts,
        requests_per_s=worker.per_s("http_request_duration_highr_seconds_count"),
        tokens_per_s=worker.per_s("vllm:generation_tokens"),
        loop_lag_ms=(lag_s or 0.0) * 1e3,
        cache_hit_share=worker.ratio(
            "tokenfleet:tokenizer_cache_hits", "tokenfleet:tokenizer_cache_hits", "tokenfleet:tokenizer_cache_misses"
        ),
        ring_fill_share=now.values.get("tokenfleet:ring_occupancy", 0.0),
        open_connections=int(now.values.get("tokenfleet:open_connections", 0)),
        open_streams=int(now.values.get("tokenfleet:open_streams", 0)),
        oldest_stream_s=now.values.get("tokenfleet:oldest_stream_age_seconds", 0.0),
        cpu_share=worker.cpu_share,
        resident_mb=now.resident_bytes / 1e6,
    )


def _engine_row(engine: Growth) -> EngineRow:
    now = engine.now
    step_s = engine.ratio("tokenfleet:engine_step_seconds_sum", "tokenfleet:engine_step_seconds_count")
    return EngineRow(
        engine=now.index,
        pid=now.pid,
        state=now.state,
        restarts=now.restarts,
        steps_per_s=engine.per_s("tokenfleet:engine_step_seconds_count"),
        step_ms=None if step_s is None else step_s * 1e3,
        tokens_per_step=engine.ratio("tokenfleet:engine_tokens", "tokenfleet:engine_step_seconds_count"),
        requests_running=int(now.values.get("tokenfleet:engine_requests_running", 0)),
        requests_waiting=int(now.values.get("tokenfleet:engine_requests_waiting", 0)),
        kv_usage_share=now.values.get("tokenfleet:engine_kv_usage", 0.0),
        prefix_hit_share=engine.ratio("vllm:prefix_cache_hits", "vllm:prefix_cache_queries"),
        preemptions=int(now.values.get("vllm:num_preemptions", 0)),
        full_ring_waits=int(now.values.get("tokenfleet:ring_full_waits", 0)),
        cpu_share=engine.cpu_share,
        resident_mb=now.resident_bytes / 1e6,
    )


class NoFleet(Exception):
    """There is nothing to look at; the text says why."""


def fetch(ops_url: str) -> Snapshot:
    """Raises NoFleet."""
    try:
        with urllib.request.urlopen(f"{ops_url}/fleet", timeout=TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(), type=Snapshot)
    except (OSError, urllib.error.URLError, msgspec.DecodeError) as error:
        raise NoFleet(f"{ops_url}/fleet cannot be read: {error}") from None


def run(url: str | None, *, interval_s: float, is_once: bool, is_json: bool, svg: Path | None) -> int:
    """Until interrupted; with `is_once` or an `svg` to write, one interval long. Raises WhichFleet."""
    try:
        ops_url = the_ops_url() if url is None else url.rstrip("/")
        before = fetch(ops_url)
        if is_once or svg is not None:
            time.sleep(interval_s)
            _show_once(screen_of(before, fetch(ops_url)), is_json=is_json, svg=svg)
        elif is_json:
            raise NoFleet("--json needs --once")
        else:
            _show_live(ops_url, before, interval_s)
    except NoFleet as error:
        print(f"tokenfleet: {error}", file=sys.stderr)
        return exit_codes.FAILED
    return exit_codes.OK


def _show_once(screen: Screen, *, is_json: bool, svg: Path | None) -> None:
    from rich.console import Console  # 20 MB and a third of a second: only where a screen is drawn

    from ops.top_screen import drawn

    if svg is not None:
        console = Console(record=True, width=SVG_COLUMNS, force_terminal=True, file=StringIO())
        console.print(drawn(screen))
        svg.write_text(console.export_svg(title="tokenfleet top"))
    elif is_json:
        print(msgspec.json.encode(screen).decode())
    else:
        Console().print(drawn(screen))


def _show_live(ops_url: str, before: Snapshot, interval_s: float) -> None:
    from rich.live import Live

    from ops.top_screen import drawn

    interrupt = {signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)  # it ends a wait: in the middle of drawing it can be lost
    with Live(screen=True, auto_refresh=False) as live:
        while signal.sigtimedwait(interrupt, interval_s) is None:
            now = fetch(ops_url)
            live.update(drawn(screen_of(before, now)), refresh=True)
            before = now
