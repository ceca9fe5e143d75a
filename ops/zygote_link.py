"""The supervisor's end of one zygote: asks it for workers, hears of their pids. Ends when its zygote does.

Every zygote gets a link of its own, so no command outlives the process it was sent to: at the end of the link whoever
still waits for a worker hears ZygoteLost and asks the next zygote. The end is seen only when the processes in between
are gone too, so a worker that the dying zygote did fork is known by then.
"""

import asyncio
import socket
from collections.abc import Callable

import msgspec

from ipc.handles import WorkerHandles
from ops.zygote_messages import LOADED, MAX_MESSAGE_BYTES, NOT_FORKED, Forked

FORK_TIMEOUT_S = 20.0


class ZygoteLost(Exception):
    """The zygote ended before it answered."""


class ForkFailed(Exception):
    """The zygote lives, and no worker came of the command."""


class ZygoteSilent(Exception):
    """It does not answer in time."""


class ZygoteLink:
    """`child_end` is for the zygote to inherit; close it here after the spawn."""

    def __init__(self, on_loaded: Callable[[], None]) -> None:
        self._on_loaded = on_loaded
        self._socket, self.child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._has_loaded: asyncio.Future[None] = self._loop.create_future()
        self._answer: asyncio.Future[Forked] | None = None
        self._asked = (-1, 0)  # slot and generation
        self._turn = asyncio.Lock()  # one command at a time: the socket's buffer never fills
        self._loop.add_reader(self._socket.fileno(), self._on_message)

    async def fork(self, handles: WorkerHandles) -> int:
        """Pid of a new worker, once the zygote has loaded. Raises ZygoteLost, ForkFailed, ZygoteSilent."""
        async with self._turn:
            await asyncio.shield(self._has_loaded)
            self._answer = self._loop.create_future()
            self._asked = handles.slot, handles.generation
            try:
                self._socket.send(msgspec.msgpack.encode(handles))
            except OSError:  # closed here or at the other end
                raise ZygoteLost from None
            try:
                return (await asyncio.wait_for(self._answer, FORK_TIMEOUT_S)).pid
            except TimeoutError:
                raise ZygoteSilent(f"no worker within {FORK_TIMEOUT_S:g} s") from None

    def _on_message(self) -> None:
        try:
            encoded = self._socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # it left a command unread
            encoded = b""
        if not encoded:
            self._end()
            return
        message = msgspec.msgpack.decode(encoded, type=Forked)
        if message.pid == LOADED:
            self._has_loaded.set_result(None)
            self._on_loaded()
        elif self._answer is None or self._answer.done() or (message.slot, message.generation) != self._asked:
            return  # nobody waits for it any more
        elif message.pid == NOT_FORKED:
            self._answer.set_exception(ForkFailed("the process in between has failed"))
        else:
            self._answer.set_result(message)

    def _end(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for waiting in (self._has_loaded, self._answer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ZygoteLost())
                waiting.exception()  # nobody need be waiting: that is no error
