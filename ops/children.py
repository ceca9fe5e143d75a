"""One child process of the supervisor: started, awaited through a pidfd, started again, until it is told to stop.

The page's cell says what is true: a new generation begins after the old process was reaped, never before.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from ipc.fleet_page import Cell, State
from ipc.metrics_page import clear_gauges
from ops import exit_codes

logger = logging.getLogger(__name__)

STEADY_AFTER_S = 10.0  # a process that worked this long did not crash at start
FIRST_BACKOFF_S = 0.5
MAX_FAILED_STARTS = 5  # in a row: then it will not come back by itself
KILL_AFTER_ABORT_S = 2.0  # time for the traceback that SIGABRT writes


@dataclass(frozen=True)
class Exit:
    """How a process ended: exactly one of the two is set."""

    code: int | None
    signal: int | None

    @property
    def fields(self) -> dict[str, object]:
        if self.signal is None:
            return {"code": self.code}
        hint = {"hint": "out of memory?"} if self.signal == signal.SIGKILL else {}
        return {"signal": signal.Signals(self.signal).name, **hint}


class Child:
    """`spawn(generation)` starts the process and gives its pid; a zygote has neither cell nor metrics page."""

    def __init__(
        self,
        title: str,
        cell: Cell | None,
        spawn: Callable[[int], Awaitable[int]],
        max_backoff_s: float,
        *,
        metrics: memoryview | None = None,
        on_death: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_death` hears that the page tells of its end, also when it was told to stop."""
        self.title, self.cell = title, cell
        self.pid: int | None = None
        self.has_given_up = False  # it said that it cannot boot, exit code 3, or it died at every start
        self.is_spawning = False
        self._spawn, self._max_backoff_s, self._metrics = spawn, max_backoff_s, metrics
        self._on_death = on_death
        self._has_loaded = False
        self._is_stopping = False
        self._works_since_s: float | None = None
        self._num_early_deaths = 0
        self._num_failed_starts = 0
        self._killed_on_purpose = False

    async def keep(self) -> None:
        """Until stopped, or until it has given up."""
        generation = first = 1 + (self.cell.generation if self.cell is not None else 0)
        while not self._is_stopping:
            exit = await self._run_once(generation, is_restart=generation > first)
            generation += 1
            if self._is_stopping:
                return
            self._num_failed_starts = 0 if self.has_started else self._num_failed_starts + 1
            if exit.code == exit_codes.CANNOT_BOOT or self._num_failed_starts == MAX_FAILED_STARTS:
                self.has_given_up = True
                return
            worked_s = 0.0 if self._works_since_s is None else time.monotonic() - self._works_since_s
            await asyncio.sleep(self._pause_s(worked_s))

    def mark_loaded(self) -> None:
        """A process without a cell has done its start."""
        self._has_loaded = True

    def look(self) -> None:
        """With every turn of the watch: from the first that finds it past its start, it works."""
        if self._works_since_s is None and self.pid is not None and self.has_started:
            self._works_since_s = time.monotonic()

    def send(self, number: int) -> None:
        """A signal, if there is a process."""
        if self.pid is not None:
            os.kill(self.pid, number)  # not reaped yet, so the pid is still its own

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and start no other."""
        self._is_stopping = True
        if self.pid is None:
            self._leave_vacant()
        self.send(number)

    async def abort(self, reason: str) -> None:
        """A stuck process: SIGABRT makes faulthandler write where it stands, SIGKILL ends it. Another one is started."""
        if self._killed_on_purpose or self.pid is None:
            return
        self._killed_on_purpose = True
        logger.error("process is stuck", extra={"child": self.title, "pid": self.pid, "reason": reason})
        pid = self.pid
        self.send(signal.SIGABRT)
        await asyncio.sleep(KILL_AFTER_ABORT_S)
        if self.pid == pid:
            self.send(signal.SIGKILL)

    async def _run_once(self, generation: int, *, is_restart: bool) -> Exit:
        self._killed_on_purpose = self._has_loaded = False
        self._works_since_s = None
        if self.cell is not None:
            self.cell.begin_generation(generation, is_restart=is_restart)
        self.is_spawning = True
        try:
            self.pid = await self._spawn(generation)
        except OSError as error:  # no memory, no pid, no descriptor: as if it had died at its start
            logger.error("process was not spawned", extra={"child": self.title, "reason": str(error)})
            return Exit(exit_codes.FAILED, None)
        finally:
            self.is_spawning = False
        if self.cell is not None:
            self.cell.mark_alive(self.pid)
        if self._is_stopping:
            self.send(signal.SIGTERM)  # told while it was being spawned
        exit = await wait_for_exit(self.pid)
        self.pid = None
        if self.cell is not None:
            self.cell.mark_dead()
        if self._is_stopping:
            self._leave_vacant()
        self._on_death()
        if self._metrics is not None:
            clear_gauges(self._metrics)
        if not self._is_stopping and exit.code != exit_codes.CANNOT_BOOT:
            logger.error("process died", extra={"child": self.title, "generation": generation, **exit.fields})
        return exit

    def _leave_vacant(self) -> None:
        """Nobody is missing here, also if it was killed before it could say that it leaves."""
        if self.cell is not None:
            self.cell.state = State.EMPTY

    @property
    def has_started(self) -> bool:
        """Whether the process that runs, or ran last, has done its start."""
        return self._has_loaded if self.cell is None else self.cell.state > State.STARTING

    def _pause_s(self, worked_s: float) -> float:
        """Before the next start; deaths at or right after the start make it grow."""
        if worked_s >= STEADY_AFTER_S:
            self._num_early_deaths = 0
            return 0.0
        self._num_early_deaths += 1
        return backoff_s(self._num_early_deaths, self._max_backoff_s)


def backoff_s(num_failures: int, max_s: float) -> float:
    """The first failure in a row is answered at once, the others ever later."""
    if num_failures == 1:
        return 0.0
    return min(max_s, FIRST_BACKOFF_S * 2.0 ** (num_failures - 2))


def reap_strangers(own_pids: Collection[int]) -> None:
    """Orphans that were never ours: a PID 1 inherits every one of its container, and they stay zombies until it looks."""
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in own_pids:
                return  # its keeper is about to; strangers behind it have their turn next time
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        pass  # no children at all


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def wait_for_exit(pid: int) -> Exit:
    """Reap a child without blocking the loop; also one that becomes ours only when its parent ends."""
    loop = asyncio.get_running_loop()
    has_ended: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, _settle, has_ended)
    try:
        await has_ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    while True:
        try:
            _, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            await asyncio.sleep(0.005)  # its parent, the process in between, is just ending
            continue
        if os.WIFSIGNALED(status):
            return Exit(None, os.WTERMSIG(status))
        return Exit(os.WEXITSTATUS(status), None)
