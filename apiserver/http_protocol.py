"""The one seam over uvicorn: a protocol that lets a streaming response write to its connection without ASGI messages.

An ASGI message per token costs a coroutine step, a dict and several checks. Here a response may take a StreamWriter out
of `scope["extensions"]["tokenfleet.stream_writer"]` after it has sent its headers the ordinary way; pieces of the body then go
straight to the transport, framed as HTTP chunks. The end goes back through ASGI (`http.response.body` without
`more_body`), so keep-alive, pipelining and the next request stay uvicorn's business.

Flow control is the transport's: past its high-water mark `can_write` is False until it drains. Without the extension (another
server, a test client) a response sends ordinary ASGI messages instead; see apiserver.event_stream.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "tokenfleet.stream_writer"


class StreamWriter:
    """The body of one response, written piece by piece. Valid between the headers and the end of the response."""

    def __init__(self, protocol: "FleetHttpProtocol", cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle
        self._transport: asyncio.Transport = cycle.transport
        self._flow = protocol.flow
        self.on_drained: Callable[[], None] = _ignore  # called when a paused transport takes bytes again
        self.on_disconnect: Callable[[], None] = _ignore  # called once, when the client is gone

    def watch(self) -> None:
        """From now on the callbacks are called, until `close`."""
        self._protocol.writer = self

    def open(self) -> None:
        """Before the headers of a body written here. HTTP/1.0 knows no chunks: its body ends with the connection."""
        if self._cycle.scope["http_version"] == "1.0":
            self._cycle.chunked_encoding = False

    @property
    def can_write(self) -> bool:
        return not self._flow.write_paused

    @property
    def is_closed(self) -> bool:
        return self._cycle.disconnected or self._transport.is_closing()

    def close(self) -> None:
        """After the last piece: the connection may go on with another request."""
        self._protocol.writer = None

    def write(self, data: bytes) -> None:
        """One piece of the body, one write to the socket. `data` is not empty."""
        if self._cycle.chunked_encoding:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._transport.write(data)


class FleetHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which also tells its stream writers of a drained or lost connection."""

    writer: StreamWriter | None = None  # of the response that streams now

    def on_headers_complete(self) -> None:
        previous = self.cycle
        extensions: dict[str, Any] = {}  # Any: each extension has a type of its own
        self.scope["extensions"] = extensions
        super().on_headers_complete()
        if self.cycle is not previous and self.cycle is not None:
            extensions[EXTENSION] = StreamWriter(self, self.cycle)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.writer is not None:
            self.writer.on_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.on_disconnect()


def stream_writer_of(scope: Any) -> StreamWriter | None:  # Any: ASGI scopes are dicts of many types
    """The writer this connection offers, or None."""
    writer = scope.get("extensions", {}).get(EXTENSION)
    return writer if isinstance(writer, StreamWriter) else None


def _ignore() -> None:
    pass
