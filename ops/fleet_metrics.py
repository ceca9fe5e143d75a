"""What the supervisor knows of the fleet, as metrics: liveness, restarts, rings, processor time and memory.

Sampled by its watch and from outside, so that a process that is stuck cannot hide it.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from ipc.fleet_page import Cell, FleetPage
from ipc.metrics_page import Instrument, MetricsWriter, Tally
from ipc.ring import used_share

PROCESS_EVERY_S = 5.0  # /proc is looked at this often
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")

INSTRUMENTS = (
    Instrument("counter", "tokenfleet:restarts", "Deaths answered with a new process, by role."),
    Instrument("gauge", "tokenfleet:heartbeat_age_seconds", "Oldest heartbeat of a role.", combine="max"),
    Instrument("gauge", "tokenfleet:processes", "Processes that should run, by role."),
    Instrument("gauge", "tokenfleet:processes_ready", "Processes that are ready and beat, by role."),
    Instrument("gauge", "tokenfleet:ring_occupancy", "Fullest token ring of a worker, 0 to 1."),
    Instrument("gauge", "tokenfleet:has_been_ready", "1 once the fleet could serve, also when it cannot any more."),
    Instrument("gauge", "tokenfleet:draining_seconds", "Time since the fleet was told to stop, 0 until then."),
    Instrument("gauge", "tokenfleet:drain_limit_seconds", "What a drain may take: pre_stop_s and drain_timeout_s."),
    Instrument("counter", "tokenfleet:process_cpu_seconds", "Processor time of one process and its predecessors."),
    Instrument("gauge", "tokenfleet:process_resident_memory_bytes", "Resident memory of one process, shared included."),
    Instrument("counter", "process_cpu_seconds", "Processor time of the whole fleet."),
    Instrument(
        "gauge", "process_resident_memory_bytes", "Resident memory of all processes: shared pages count in each."
    ),
    Instrument("gauge", "process_start_time_seconds", "Unix time at which the supervisor began."),
    Instrument("gauge", "vllm:lora_requests_info", "LoRA adapters that are loaded, as labels. The value is the time."),
)


class ProcessUsage(Struct, frozen=True):
    cpu_s: float
    resident_bytes: int


def process_usage(pid: int) -> ProcessUsage | None:
    """None for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessUsage((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)


class RoleMetrics:
    """All processes of one role."""

    def __init__(
        self, writer: MetricsWriter, role: str, cells: Sequence[Cell], num_processes: int, heartbeat_timeout_s: float
    ) -> None:
        self._cells, self._timeout_s = cells, heartbeat_timeout_s
        self._restarts = Tally(writer.counter("tokenfleet:restarts", role=role))
        self._heartbeat_age = writer.gauge("tokenfleet:heartbeat_age_seconds", role=role)
        self._ready = writer.gauge("tokenfleet:processes_ready", role=role)
        writer.gauge("tokenfleet:processes", role=role).set(num_processes)
        self.processes = [ProcessMetrics(writer, role, number, cell) for number, cell in enumerate(cells)]

    def publish(self) -> None:
        self._restarts.grow_to(sum(cell.restarts for cell in self._cells))
        self._heartbeat_age.set(max((cell.heartbeat_age_s for cell in self._cells if cell.is_alive), default=0.0))
        self._ready.set(sum(cell.is_ready(self._timeout_s) for cell in self._cells))


class ProcessMetrics:
    """One process after the other in the same place."""

    def __init__(self, writer: MetricsWriter, role: str, number: int, cell: Cell) -> None:
        self._cell = cell
        self._fleet_cpu = writer.counter("process_cpu_seconds")
        self._cpu = writer.counter("tokenfleet:process_cpu_seconds", role=role, index=str(number))
        self._resident = writer.gauge("tokenfleet:process_resident_memory_bytes", role=role, index=str(number))
        self._generation, self._seen_cpu_s = 0, 0.0

    def publish(self) -> int:
        """Returns the resident bytes."""
        generation = self._cell.generation
        usage = process_usage(self._cell.pid) if self._cell.is_alive else None
        if usage is None:
            self._resident.set(0)
            return 0
        if generation != self._generation:
            self._generation, self._seen_cpu_s = generation, 0.0
        for counter in (self._cpu, self._fleet_cpu):
            counter.inc(usage.cpu_s - self._seen_cpu_s)
        self._seen_cpu_s = usage.cpu_s
        self._resident.set(usage.resident_bytes)
        return usage.resident_bytes


class FleetMetrics:
    def __init__(
        self,
        view: memoryview,
        page: FleetPage,
        rings: Sequence[Sequence[memoryview]],
        *,
        num_workers: int,
        heartbeat_timeout_s: float,
        drain_limit_s: Callable[[], float],
        adapters: Sequence[str] = (),
    ) -> None:
        """`rings[engine][slot]` are the token rings, to be read only; there is one slot more than workers. `drain_limit_s`
        is asked each time: a reload may change it. `adapters` are in every engine from its start on: pickers find them as
        running ones."""
        writer = MetricsWriter(view, INSTRUMENTS)
        self._page, self._rings = page, rings
        self._heartbeat_timeout_s, self._drain_limit_s = heartbeat_timeout_s, drain_limit_s
        roles = {"broker": [page.broker], "engine": page.engines, "worker": page.workers}
        self._roles = [
            RoleMetrics(writer, role, cells, num_workers if role == "worker" else len(cells), heartbeat_timeout_s)
            for role, cells in roles.items()
        ]
        self._occupancy = [
            writer.gauge("tokenfleet:ring_occupancy", worker=str(worker)) for worker in range(len(page.workers))
        ]
        self._has_been_ready = writer.gauge("tokenfleet:has_been_ready")
        self._draining = writer.gauge("tokenfleet:draining_seconds")
        self._drain_limit = writer.gauge("tokenfleet:drain_limit_seconds")
        self._resident = writer.gauge("process_resident_memory_bytes")
        self._lora_info = writer.gauge(
            "vllm:lora_requests_info",
            max_lora=str(len(adapters)),
            running_lora_adapters=",".join(adapters),
            waiting_lora_adapters="",
        )
        writer.gauge("process_start_time_seconds").set(time.time())
        self._drain_began_s: float | None = None
        self._next_processes_s = 0.0

    def publish(self) -> None:
        """With every beat of the supervisor's watch: once a second, or oftener where silence is borne for less than four."""
        now_s = time.monotonic()
        for role in self._roles:
            role.publish()
        for worker, gauge in enumerate(self._occupancy):
            is_vacant = self._page.workers[worker].is_vacant  # what lies in such a ring is for nobody any more
            gauge.set(0.0 if is_vacant else max(used_share(rings[worker]) for rings in self._rings))
        self._lora_info.set(time.time())
        if not self._page.faults(self._heartbeat_timeout_s):
            self._has_been_ready.set(1)
        self._drain_limit.set(self._drain_limit_s())
        if self._page.is_draining:
            self._drain_began_s = self._drain_began_s or now_s
            self._draining.set(now_s - self._drain_began_s)
        if now_s >= self._next_processes_s:
            self._next_processes_s = now_s + PROCESS_EVERY_S
            own = process_usage(os.getpid())
            resident = sum(process.publish() for role in self._roles for process in role.processes)
            self._resident.set(resident + (own.resident_bytes if own else 0))
