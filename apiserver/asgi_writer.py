"""The same as a StreamWriter, over plain ASGI messages: for servers that do not offer the extension, such as test clients.

Pieces queue up to a bound and a task sends them; another one listens for the client's leaving.
"""

import asyncio

from starlette.types import Receive, Send

from apiserver.http_protocol import ConnectionListener

HIGH_WATER_BYTES = 65_536  # as asyncio's transports


class AsgiWriter:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._has_pieces = asyncio.Event()
        self._is_finished = False
        self._listener: ConnectionListener | None = None
        self._listening: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_paused(self) -> bool:
        return self._num_bytes > HIGH_WATER_BYTES

    @property
    def direct_fd(self) -> None:
        """The connection is the server's."""
        return None

    def listen(self, listener: ConnectionListener) -> None:
        self._listener = listener
        self._listening = asyncio.create_task(self._listen())

    def close(self) -> None:
        self._listener = None
        for task in (self._listening, self._sending):
            if task is not None:
                task.cancel()

    def open(self) -> None:
        self._sending = asyncio.create_task(self._send_pieces())

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._num_bytes += len(data)
        self._has_pieces.set()
        if self.is_paused and self._listener is not None:
            self._listener.on_paused()

    def write_rest(self, rest: bytes) -> None:
        raise AssertionError("nothing is written directly")

    def hold(self, data: bytes) -> None:
        self.write(data)

    def flush(self) -> None:
        pass

    def abort(self) -> None:
        """There is no connection to drop: the response just ends here."""
        self._is_finished = True
        self._pieces.clear()
        self._has_pieces.set()

    async def finish(self) -> None:
        """Until everything is sent."""
        self._is_finished = True
        self._has_pieces.set()
        if self._sending is not None:
            await self._sending

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._tell_disconnected()

    async def _send_pieces(self) -> None:
        while self._pieces or not self._is_finished:
            await self._has_pieces.wait()
            self._has_pieces.clear()
            body, self._pieces = b"".join(self._pieces), []
            if body:
                try:
                    await self._send({"type": "http.response.body", "body": body, "more_body": True})
                except OSError:  # what ASGI servers raise when the client has left
                    self._tell_disconnected()
                    return
            was_paused = self.is_paused
            self._num_bytes -= len(body)
            if was_paused and not self.is_paused and self._listener is not None:
                self._listener.on_resumed()

    def _tell_disconnected(self) -> None:
        if self._listener is not None:
            self._listener.on_disconnected()
