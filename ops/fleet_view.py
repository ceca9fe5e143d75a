"""The fleet process by process, as `tokenfleet top` reads it: liveness, counters since the start, the slowest requests.

Nothing here is a rate: whoever looks twice has two totals and the time between them.
"""

import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from ipc.fleet_page import Cell, FleetPage
from ipc.metrics_page import MetricsReader
from ipc.notes import read_notes
from ops.fleet_metrics import ProcessUsage, process_usage


class SlowRequest(Struct, frozen=True):
    """Times are milliseconds. A stage the request never reached is 0."""

    request_id: str
    path: str
    status: int
    duration_ms: float
    finish: str
    worker: int = -1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    preprocess_ms: float = 0.0  # received to sent to the broker: parsing, template, tokenizing
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    ttft_ms: float = 0.0

    @property
    def other_ms(self) -> float:
        """Broker, ring, and writing to the client."""
        return max(0.0, self.duration_ms - self.preprocess_ms - self.queue_ms - self.prefill_ms - self.decode_ms)


class Process(Struct, frozen=True):
    """One process. `values` are its counters and gauges by name, `NAME_count` and `NAME_sum` of a histogram."""

    role: str
    index: int
    pid: int
    state: str
    generation: int
    restarts: int
    heartbeat_age_s: float
    cpu_s: float
    resident_bytes: int
    values: dict[str, float]


class Snapshot(Struct, frozen=True):
    time_s: float  # CLOCK_MONOTONIC of the fleet's host
    is_draining: bool
    processes: tuple[Process, ...]
    slowest: tuple[SlowRequest, ...]

    def of_role(self, role: str) -> list[Process]:
        return [process for process in self.processes if process.role == role]


class FleetView:
    def __init__(self, page: FleetPage, views: Sequence[memoryview]) -> None:
        """`views` are the metrics pages of supervisor, broker, engines, workers, in this order."""
        self._page = page
        num_engines = len(page.engines)
        self._supervisor = MetricsReader(views[0])
        self._worker_views = list(views[2 + num_engines :])
        cells = [("broker", 0, page.broker), *(("engine", n, cell) for n, cell in enumerate(page.engines))]
        cells += [("worker", n, cell) for n, cell in enumerate(page.workers)]
        self._processes = [(*place, MetricsReader(view)) for place, view in zip(cells, views[1:], strict=True)]

    def snapshot(self) -> Snapshot:
        occupancy = {
            int(dict(series.labels)["worker"]): self._supervisor.slots(series)[0]
            for series in self._supervisor.series()
            if series.instrument.name == "tokenfleet:ring_occupancy"
        }
        processes = []
        for role, index, cell, reader in self._processes:
            if role == "worker" and cell.is_vacant:
                continue
            values = _values(reader)
            if role == "worker":
                values["tokenfleet:ring_occupancy"] = occupancy.get(index, 0.0)
            processes.append(_process(role, index, cell, values))
        return Snapshot(time.monotonic(), self._page.is_draining, tuple(processes), tuple(self._slowest()))

    def _slowest(self) -> list[SlowRequest]:
        found = []
        for worker, view in enumerate(self._worker_views):
            notes = read_notes(view)
            requests = msgspec.json.decode(notes, type=list[SlowRequest]) if notes else []
            found += [msgspec.structs.replace(request, worker=worker) for request in requests]
        return sorted(found, key=lambda request: -request.duration_ms)[:16]


def _process(role: str, index: int, cell: Cell, values: dict[str, float]) -> Process:
    usage = (process_usage(cell.pid) if cell.is_alive else None) or ProcessUsage(0.0, 0)
    return Process(
        role=role,
        index=index,
        pid=cell.pid,
        state=cell.state.name.lower() if cell.is_alive else "dead",
        generation=cell.generation,
        restarts=cell.restarts,
        heartbeat_age_s=cell.heartbeat_age_s,
        cpu_s=usage.cpu_s,
        resident_bytes=usage.resident_bytes,
        values=values,
    )


def _values(reader: MetricsReader) -> dict[str, float]:
    """Series that differ only in labels are added up."""
    values: dict[str, float] = {}
    for series in reader.series():
        name, slots = series.instrument.name, reader.slots(series).tolist()
        parts = {name: slots[0]}
        if series.instrument.kind == "histogram":
            parts = {f"{name}_count": sum(slots[:-1]), f"{name}_sum": slots[-1]}
        elif series.instrument.kind == "summary":
            parts = {f"{name}_count": slots[0], f"{name}_sum": slots[1]}
        for part, value in parts.items():
            values[part] = values.get(part, 0.0) + value
    return values
