"""How `tokenfleet top` looks: tables of rich. Knows nothing of where the numbers come from."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ops.fleet_view import SlowRequest
from ops.top import EngineRow, Screen, WorkerRow

NUM_SLOWEST = 8
BAR_CELLS = 24
LAG_WARN_MS, RING_WARN, KV_WARN = 50.0, 0.5, 0.95
STAGES = (("preprocess", "cyan"), ("queue", "yellow"), ("prefill", "blue"), ("decode", "green"), ("other", "magenta"))


def drawn(screen: Screen) -> RenderableType:
    return Group(_headline(screen), _workers(screen.workers), _engines(screen.engines), _slowest(screen.slowest))


def _headline(screen: Screen) -> Text:
    text = Text.assemble(
        ("tokenfleet", "bold"),
        f"  {screen.requests_per_s:.1f} req/s  {screen.tokens_per_s:.0f} tok/s  broker {screen.broker_state}, ",
        f"{screen.broker_queue} waiting  over {screen.interval_s:.1f} s",
    )
    if screen.is_draining:
        text.append("  DRAINING", "bold red")
    return text


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column in ("state", "stages", "request") else "right", no_wrap=True)
    return table


def _workers(rows: list[WorkerRow]) -> Table:
    table = _table(
        "\nworkers", "#", "pid", "state", "restarts", "req/s", "tok/s", "lag ms", "tok. cache", "ring", "conns",
        "streams", "oldest s", "CPU", "RSS MB",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.worker),
            str(row.pid),
            _state(row.state),
            str(row.restarts),
            f"{row.requests_per_s:.1f}",
            f"{row.tokens_per_s:.0f}",
            _warned(f"{row.loop_lag_ms:.1f}", row.loop_lag_ms > LAG_WARN_MS),
            _share(row.cache_hit_share),
            _warned(_share(row.ring_fill_share), row.ring_fill_share > RING_WARN),
            str(row.open_connections),
            str(row.open_streams),
            f"{row.oldest_stream_s:.1f}",
            _share(row.cpu_share),
            f"{row.resident_mb:.0f}",
        )
    return table


def _engines(rows: list[EngineRow]) -> Table:
    table = _table(
        "\nengines", "#", "pid", "state", "restarts", "steps/s", "step ms", "tok/step", "running", "waiting", "KV",
        "prefix hits", "preempted", "ring waits", "CPU", "RSS MB",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.engine),
            str(row.pid),
            _state(row.state),
            str(row.restarts),
            f"{row.steps_per_s:.1f}",
            _number(row.step_ms),
            _number(row.tokens_per_step),
            str(row.requests_running),
            str(row.requests_waiting),
            _warned(_share(row.kv_usage_share), row.kv_usage_share > KV_WARN),
            _share(row.prefix_hit_share),
            str(row.preemptions),
            _warned(str(row.full_ring_waits), row.full_ring_waits > 0),
            _share(row.cpu_share),
            f"{row.resident_mb:.0f}",
        )
    return table


def _slowest(requests: list[SlowRequest]) -> Table:
    table = _table(
        "\nslowest of the last minute", "ms", "ttft ms", "in", "cached", "out", "worker", "request", "stages"
    )
    for request in requests[:NUM_SLOWEST]:
        table.add_row(
            f"{request.duration_ms:.0f}",
            f"{request.ttft_ms:.0f}",
            str(request.prompt_tokens),
            str(request.cached_tokens),
            str(request.completion_tokens),
            str(request.worker),
            request.request_id[:16],
            _bar(request),
        )
    legend = Text.assemble(*((f"█ {name}  ", style) for name, style in STAGES))
    table.caption, table.caption_justify = legend, "left"
    return table


def _bar(request: SlowRequest) -> Text:
    """Where its time went: a bar of the stages' shares, and the longest in words."""
    stages = [(name, style, float(getattr(request, f"{name}_ms"))) for name, style in STAGES]
    total_ms = sum(ms for _, _, ms in stages) or 1.0
    bar = Text()
    for _, style, ms in stages:
        bar.append("█" * round(ms / total_ms * BAR_CELLS), style)
    name, _, longest_ms = max(stages, key=lambda stage: stage[2])
    bar.append(f" {name} {longest_ms:.0f} ms, {request.finish}")
    return bar


def _state(state: str) -> Text:
    return Text(state, {"ready": "green", "dead": "bold red"}.get(state, "yellow"))


def _warned(text: str, is_bad: bool) -> Text:
    return Text(text, "bold red" if is_bad else "")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
