"""The workers of a fleet and their slots: one slot more than workers, so that a successor serves before its predecessor goes.

A slot is what exactly one process at a time can own: rings, doorbell, metrics page. `replace_all` starts a worker in the
free slot, waits until it serves, lets the old one finish its streams, and has its slot free for the next. All of them
accept from the same listening sockets, so at no moment is a client refused or kept waiting.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Sequence

from ipc.fleet_page import Cell, State
from ops.children import Child

logger = logging.getLogger(__name__)

LOOK_S = 0.02


class CannotReplace(Exception):
    """A successor did not come up; those that are not replaced yet go on serving."""


class WorkerSet:
    """`start_in(slot)` gives what spawns a worker there; `keep` keeps a child. `cells` and `metrics` by slot."""

    def __init__(
        self,
        cells: Sequence[Cell],
        start_in: Callable[[int], Callable[[int], Awaitable[int]]],
        keep: Callable[[Child], None],
        max_backoff_s: float,
        metrics: Sequence[memoryview],
        *,
        on_death: Callable[[], object],
    ) -> None:
        self._cells, self._start_in, self._keep = cells, start_in, keep
        self._max_backoff_s, self._metrics, self._on_death = max_backoff_s, metrics, on_death
        self._free_slot = len(cells) - 1
        self._slots = list(range(self._free_slot))
        self._children = [self._new_child(slot) for slot in self._slots]
        self._leaving: Child | None = None

    @property
    def children(self) -> list[Child]:
        """Also the one that is on its way out."""
        return self._children if self._leaving is None else [*self._children, self._leaving]

    def needs(self, child: Child) -> bool:
        """Not a successor that does not serve yet, nor who gave way to one."""
        return child in self._children

    async def replace_all(self, *, start_timeout_s: float, drain_timeout_s: float) -> None:
        """One after the other. Raises CannotReplace."""
        for index in range(len(self._children)):
            await self._replace(index, start_timeout_s, drain_timeout_s)

    async def _replace(self, index: int, start_timeout_s: float, drain_timeout_s: float) -> None:
        successor = self._new_child(self._free_slot)
        cell = self._cells[self._free_slot]
        self._leaving = successor  # known to who watches and stops, whatever becomes of it
        self._keep(successor)

        def serves() -> bool:
            return cell.is_alive and cell.state == State.READY

        await holds(lambda: serves() or successor.has_given_up, start_timeout_s)
        if not serves():
            await self._end(successor, 0.0)
            raise CannotReplace(f"{successor.title} has not become ready")
        leaver, self._children[index] = self._children[index], successor
        self._slots[index], self._free_slot = self._free_slot, self._slots[index]
        self._leaving = leaver
        await self._end(leaver, drain_timeout_s)

    async def _end(self, child: Child, timeout_s: float) -> None:
        child.stop()
        if not await holds(lambda: child.pid is None, timeout_s + 1.0):
            child.stop(signal.SIGKILL)
            await holds(lambda: child.pid is None, 5.0)
        self._leaving = None

    def _new_child(self, slot: int) -> Child:
        spawn, metrics = self._start_in(slot), self._metrics[slot]
        return Child(
            f"worker {slot}",
            self._cells[slot],
            spawn,
            self._max_backoff_s,
            metrics=metrics,
            on_death=self._on_death,
        )


async def holds(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        await asyncio.sleep(LOOK_S)
    return True
