"""Who is alive: one shared page with a cell per process, read by all, the single source of truth for generations.

A cell is 128 bytes of 8-byte words, two cache lines with one storing process each:

offset  field              stored by       meaning
     0  pid                supervisor      0: not running
     8  generation         supervisor      counts the processes of this cell, 1 for the first
    16  is_alive           supervisor      1 between spawn and reaping
    24  restarts           supervisor      deaths that were answered with a new process
    64  state              the process     State
    72  heartbeat_ns       the process     CLOCK_MONOTONIC of the last turn of its working loop
    80  progress_permille  the process     how much of its start is done
    88  steps              the process     turns that did work; an engine's steps
    96  has_work           the process     1 while it owes somebody something
   104  num_peers          the process     the broker's connected engines
   112  num_connections    the process     a worker's clients

The cells stand behind a header of 64 bytes: magic, number of workers, number of engines, is_draining (supervisor).
"""

import time
from enum import IntEnum

from ipc.errors import LayoutMismatch
from ipc.segment import Segment

MAGIC = b"TFLEET02"
_HEADER_BYTES = 64
_CELL_BYTES = 128
_CELL_WORDS = _CELL_BYTES // 8


class State(IntEnum):
    EMPTY = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


class Cell:
    """One process of the fleet. Store only the fields of your side."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    @property
    def pid(self) -> int:
        return self._words[0]

    @property
    def generation(self) -> int:
        return self._words[1]

    @property
    def is_alive(self) -> bool:
        return self._words[2] != 0

    @property
    def restarts(self) -> int:
        return self._words[3]

    @property
    def state(self) -> State:
        return State(self._words[8])

    @state.setter
    def state(self, value: State) -> None:
        self._words[8] = value

    @property
    def heartbeat_ns(self) -> int:
        return self._words[9]

    @property
    def heartbeat_age_s(self) -> float:
        return (time.monotonic_ns() - self._words[9]) / 1e9

    def beat(self) -> None:
        """Called by the loop that does the work, never by a helper thread."""
        self._words[9] = time.monotonic_ns()

    @property
    def progress_permille(self) -> int:
        return self._words[10]

    @progress_permille.setter
    def progress_permille(self, value: int) -> None:
        self._words[10] = value

    @property
    def steps(self) -> int:
        return self._words[11]

    @steps.setter
    def steps(self, value: int) -> None:
        self._words[11] = value

    @property
    def has_work(self) -> bool:
        return self._words[12] != 0

    @has_work.setter
    def has_work(self, value: bool) -> None:
        self._words[12] = value

    @property
    def num_peers(self) -> int:
        return self._words[13]

    @num_peers.setter
    def num_peers(self, value: int) -> None:
        self._words[13] = value

    @property
    def num_connections(self) -> int:
        return self._words[14]

    @num_connections.setter
    def num_connections(self, value: int) -> None:
        self._words[14] = value

    @property
    def is_vacant(self) -> bool:
        """No process is missing here: none was ever started, or the last one was told to leave."""
        return not self.is_alive and self.state in (State.EMPTY, State.DRAINING)

    def is_ready(self, heartbeat_timeout_s: float) -> bool:
        """Alive, READY, and its loop has turned lately."""
        return self.is_alive and self.state == State.READY and self.heartbeat_age_s < heartbeat_timeout_s

    def begin_generation(self, generation: int, *, is_restart: bool = False) -> None:
        """Supervisor, before it spawns: the old process is reaped, the new one has not stored anything yet."""
        for word in range(8, _CELL_WORDS):
            self._words[word] = 0
        self._words[9] = time.monotonic_ns()
        self._words[8] = State.STARTING
        self._words[3] += is_restart
        self._words[1] = generation

    def mark_alive(self, pid: int) -> None:
        """Supervisor, after the spawn."""
        self._words[0] = pid
        self._words[2] = 1

    def mark_dead(self) -> None:
        """Supervisor, after it reaped the process."""
        self._words[2] = 0
        self._words[0] = 0


class FleetPage:
    """The whole page: `broker`, `engines[i]`, `workers[i]`."""

    def __init__(self, view: memoryview) -> None:
        if bytes(view[:8]) != MAGIC:
            raise LayoutMismatch(f"fleet page of layout {bytes(view[:8])!r}, this process speaks {MAGIC!r}")
        words = view.cast("Q")
        self._words = words
        num_workers, num_engines = words[1], words[2]
        first = _HEADER_BYTES // 8
        num_cells = 1 + num_engines + num_workers
        cells = [Cell(words[first + n * _CELL_WORDS : first + (n + 1) * _CELL_WORDS]) for n in range(num_cells)]
        self.broker = cells[0]
        self.engines = cells[1 : 1 + num_engines]
        self.workers = cells[1 + num_engines :]

    @classmethod
    def create_segment(cls, num_workers: int, num_engines: int) -> Segment:
        segment = Segment.create("tokenfleet-fleet", _HEADER_BYTES + _CELL_BYTES * (1 + num_engines + num_workers))
        segment.view[8:16] = num_workers.to_bytes(8, "little")
        segment.view[16:24] = num_engines.to_bytes(8, "little")
        segment.view[:8] = MAGIC
        return segment

    def faults(self, heartbeat_timeout_s: float) -> list[str]:
        """Why a request sent now would not be served; empty when it would."""
        facts = {
            "no engine is ready": not any(engine.is_ready(heartbeat_timeout_s) for engine in self.engines),
            "the broker is not ready": not self.broker.is_ready(heartbeat_timeout_s),
            "no engine is connected to the broker": self.broker.num_peers == 0,
            "no worker is ready": not any(worker.is_ready(heartbeat_timeout_s) for worker in self.workers),
            "the fleet is draining": self.is_draining,
        }
        return [fault for fault, is_true in facts.items() if is_true]

    @property
    def is_draining(self) -> bool:
        """The fleet was told to stop: readiness is false, work in hand is finished."""
        return self._words[3] != 0

    @is_draining.setter
    def is_draining(self, value: bool) -> None:
        self._words[3] = value
