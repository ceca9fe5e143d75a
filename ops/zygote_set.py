"""The zygote that workers are forked from, and its successor while that loads.

Each has its own settings and, process by process, a link of its own. The successor takes charge when it has loaded, not
before: until then, and if it never does, workers come of the old one, with the old settings.
"""

import asyncio
import logging
from collections.abc import Callable

from config.settings import Settings
from ipc.handles import WorkerHandles
from ops.children import Child, backoff_s
from ops.worker_set import CannotReplace, holds
from ops.zygote_link import ForkFailed, ZygoteLink, ZygoteLost, ZygoteSilent

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 5.0  # of a zygote after its signal, which it does not catch


class ZygoteSet:
    """`spawn(settings, command_fd)` starts a zygote and gives its pid; `keep` keeps a child."""

    def __init__(
        self, spawn: Callable[[Settings, int], int], keep: Callable[[Child], None], settings: Settings
    ) -> None:
        self._spawn, self._keep = spawn, keep
        self._max_backoff_s = settings.ops.restart_backoff_max_s
        self._links: dict[Child, ZygoteLink] = {}  # to the process that each is now, or was last
        self._has_link = asyncio.Event()  # that of the one in charge may be alive
        self._in_charge = self._new_zygote(settings)
        self.children = [self._in_charge]  # two while one takes over

    def needs(self, child: Child) -> bool:
        """Not a successor that loads, nor who gave way to one."""
        return child is self._in_charge

    async def fork(self, handles: WorkerHandles) -> int:
        """Pid of a new worker: waits for a zygote that can."""
        num_failures = 0
        while True:
            await self._has_link.wait()
            zygote = self._in_charge
            link = self._links[zygote]
            try:
                return await link.fork(handles)
            except ZygoteLost:
                if self._links[self._in_charge] is link:
                    self._has_link.clear()  # until its next process is started
            except ZygoteSilent as error:
                if self._links[self._in_charge] is link:
                    await zygote.abort(str(error))
            except ForkFailed as error:
                logger.error("no worker was forked", extra={"slot": handles.slot, "reason": str(error)})
                num_failures += 1
                await asyncio.sleep(backoff_s(num_failures, self._max_backoff_s))

    async def replace(self, settings: Settings, timeout_s: float) -> None:
        """By one with these settings. Raises CannotReplace: then the old one stays in charge."""
        old, successor = self._in_charge, self._new_zygote(settings)
        self.children.append(successor)
        self._keep(successor)
        await holds(lambda: successor.has_started or successor.has_given_up, timeout_s)
        has_loaded = successor.has_started
        if has_loaded:
            self._in_charge = successor
            self._has_link.set()
        await self._end(old if has_loaded else successor)
        if not has_loaded:
            raise CannotReplace("the new zygote has not loaded")

    async def _end(self, zygote: Child) -> None:
        """It stays among the children until it is reaped: no stranger's."""
        zygote.stop()
        await holds(lambda: zygote.pid is None, END_TIMEOUT_S)
        self.children.remove(zygote)
        self._links.pop(zygote, None)

    def _new_zygote(self, settings: Settings) -> Child:
        async def start(_generation: int) -> int:
            link = ZygoteLink(on_loaded=zygote.mark_loaded)
            try:
                pid = self._spawn(settings, link.child_end.fileno())
            finally:
                link.child_end.close()  # where nobody was spawned, the link ends with it
            self._links[zygote] = link
            if zygote is self._in_charge:
                self._has_link.set()
            return pid

        zygote = Child("zygote", None, start, self._max_backoff_s)
        return zygote
