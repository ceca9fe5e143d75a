"""The one seam over uvicorn: a protocol that lets a streaming response write to its connection without ASGI messages.

An ASGI message per token costs a coroutine step, a dict and several checks. Here a response may take a StreamWriter out
of `scope["extensions"]["tokenfleet.stream_writer"]`. It sends its headers the ordinary way; then pieces of the body go
straight to the socket, framed as HTTP chunks, and to the transport as soon as anything waits there; the end goes back
through ASGI (`http.response.body` without `more_body`), so keep-alive, pipelining and the next request stay uvicorn's
business. uvicorn touches the connection of an unfinished response nowhere else, and nothing is written past what waits.

A worker that leaves answers once more to whoever has connected: the request of a new client, or what a connection that
was idle has just been sent, is on its way, and closing on it would lose it.

Flow control is the transport's: past its high-water mark the listener is told to pause, and later to go on. Without the
extension (another server, a test client) a response sends ordinary ASGI messages; see apiserver.event_stream.
"""

import asyncio
import os
import select
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "tokenfleet.stream_writer"
CONTINUE = b"HTTP/1.1 100 "
MAX_HEAD_BYTES = (
    64 * 1024
)  # request line and headers; what one read brings is parsed whatever its size, 256 KiB at most
HIGH_WATER_BYTES = 4096  # a transport keeps each small write apart, with four times its bytes around it
LAST_REQUEST_S = 2.0  # a worker that leaves waits so long for the first request of a client that has connected
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class ConnectionListener(Protocol):
    """Who is told what happens to the connection. Called from the event loop; must not raise."""

    def on_paused(self) -> None:
        """The client reads more slowly than it is written to."""
        ...

    def on_resumed(self) -> None: ...

    def on_disconnected(self) -> None:
        """Once: nothing that is written arrives any more."""
        ...


class JoiningTransport:
    """What uvicorn's cycle writes to: holds the head of a response until there is body, so that both leave in one write."""

    __slots__ = ("_is_at_head", "_transport", "held", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.is_closing = transport, transport.is_closing
        self._is_at_head = True
        self.held = b""  # goes out in front of the next write

    def write(self, data: bytes) -> None:
        if self.held:
            data, self.held = self.held + data, b""
        elif self._is_at_head and not data.startswith(CONTINUE):
            self._is_at_head, self.held = False, data
            return
        self._transport.write(data)

    def close(self) -> None:
        if self.held:
            self.write(b"")
        self._transport.close()


class StreamWriter:
    """The body of one response, written piece by piece."""

    __slots__ = ("_cycle", "_fd", "_is_chunked", "_joining", "_protocol", "_transport")

    def __init__(self, protocol: "FleetHttpProtocol", cycle: RequestResponseCycle, joining: JoiningTransport) -> None:
        self._protocol, self._cycle, self._joining = protocol, cycle, joining
        self._transport: asyncio.Transport = protocol.transport
        self._fd = protocol.plain_fd
        self._is_chunked = cycle.scope["http_version"] != "1.0"

    @property
    def is_paused(self) -> bool:
        return self._protocol.flow.write_paused

    @property
    def direct_fd(self) -> int | None:
        """The socket, where it takes whole HTTP chunks as they are, and nothing waits in front of them."""
        if not self._is_chunked or self._joining.held or not self._is_idle:
            return None
        return self._fd

    @property
    def _is_idle(self) -> bool:
        """The connection is a plain one, lives, and has everything sent: what is written to it need not queue."""
        transport = self._transport
        return self._fd is not None and not transport.is_closing() and not transport.get_write_buffer_size()

    def listen(self, listener: ConnectionListener) -> None:
        """Tell this listener of the connection, until `close`. One that is gone already is told at once."""
        self._protocol.listener = listener
        if self._cycle.disconnected or self._transport.is_closing():
            listener.on_disconnected()

    def close(self) -> None:
        """The response is over; the connection may go on with another request. Nothing of the writer works after this:
        it stands in the scope that its cycle holds, and must not hold the cycle in turn."""
        self._protocol.listener = None
        del self._cycle

    def open(self) -> None:
        """Before the headers. HTTP/1.0 knows no chunks: without a length its body ends with the connection."""
        if not self._is_chunked:
            self._cycle.chunked_encoding = False

    def flush(self) -> None:
        """Write what is held."""
        if self._joining.held:
            self._joining.write(b"")

    def write(self, data: bytes) -> None:
        """One piece of the body; `data` is not empty. Neither while paused nor after a disconnect."""
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._joining.held:
            self._joining.write(data)
        elif self._fd is not None and self._is_idle:
            self.write_rest(data[_num_taken(self._fd, data) :])
        else:
            self._transport.write(data)

    def write_rest(self, rest: bytes) -> None:
        """Of what was written to `direct_fd`, the part that the kernel did not take."""
        if rest:
            self._transport.write(rest)

    def hold(self, data: bytes) -> None:
        """As `write`, but it leaves in front of the next write, or of the end of the body."""
        self._joining.held += b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data

    async def finish(self) -> None:
        """Everything is with the transport already, or leaves with the last ASGI message."""

    def abort(self) -> None:
        """Drop the connection with all it has not sent: the client does not read."""
        self._transport.abort()


def _num_taken(fd: int, data: bytes) -> int:
    """How much of it the kernel takes now. Of a broken connection nothing: its transport finds out, and says so."""
    try:
        return os.write(fd, data)
    except OSError:
        return 0


class FleetHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which also tells the response in progress of its connection."""

    listener: ConnectionListener | None = None
    is_leaving = False  # the worker is: the next answer is this connection's last
    _slow_timer: asyncio.TimerHandle | None = None  # runs while the client owes us a head or a body
    _is_in_head = False
    _head_bytes = 0  # of this head, beyond the read that it began in
    plain_fd: int | None = None  # the connection's socket, unless what goes through it is encrypted

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client that says nothing, or says it too slowly, does not keep its connection."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        if transport.get_extra_info("sslcontext") is None and (sock := transport.get_extra_info("socket")) is not None:
            self.plain_fd = sock.fileno()
        self._slow_timer = self.loop.call_later(self.timeout_keep_alive, self._on_slow)
        if self.is_leaving:
            self._await_last_request()

    def data_received(self, data: bytes) -> None:
        """Most requests come whole, in one read, and need no timer."""
        was_in_head = self._is_in_head
        super().data_received(data)
        if self._is_in_head:
            if was_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse_head()
                    return
        elif self.cycle is None or not self.cycle.more_body:
            return
        if self._slow_timer is None and not self.transport.is_closing():
            self._slow_timer = self.loop.call_later(self.timeout_keep_alive, self._on_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._is_in_head, self._head_bytes = False, 0
        self._forget_slow_timer()
        previous = self.cycle
        super().on_headers_complete()
        if self.cycle is not previous:  # else an upgrade took the connection
            if self.is_leaving:
                self.cycle.keep_alive = False
            # The cycle's task runs in a later turn of the loop, so the scope may still grow.
            joining = JoiningTransport(self.transport)
            if self.scope["method"] != "HEAD":  # which has no body to join
                self.cycle.transport = joining  # type: ignore[assignment]  # the part of a transport that a cycle uses
            self.scope["extensions"] = {EXTENSION: StreamWriter(self, self.cycle, joining)}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._forget_slow_timer()

    def shutdown(self) -> None:
        """The worker leaves. The answer in progress is the last; a request that is on its way is answered too."""
        self.is_leaving = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None or self._is_in_head or _has_unread(self.transport):
            self._await_last_request()
        else:
            self.transport.close()

    def _await_last_request(self) -> None:
        self._forget_slow_timer()
        self._slow_timer = self.loop.call_later(min(LAST_REQUEST_S, self.timeout_keep_alive), self._on_slow)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.listener is not None:
            self.listener.on_paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.listener is not None:
            self.listener.on_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_slow_timer()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_disconnected()

    def _on_slow(self) -> None:
        """The request is still not whole. While we do not read, the client is not to blame."""
        self._slow_timer = None
        if self.flow.read_paused or self.pipeline:
            self._slow_timer = self.loop.call_later(self.timeout_keep_alive, self._on_slow)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        """Unless an answer is on its way, which this would fall into."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(HEAD_TOO_LARGE)
        self.transport.close()

    def _forget_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None


def _has_unread(transport: asyncio.Transport) -> bool:
    """Whether the client has sent what this process has not read yet."""
    poller = select.poll()
    poller.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poller.poll(0))


def stream_writer_of(scope: Any) -> StreamWriter | None:  # Any: ASGI scopes are dicts of many types
    """The writer this connection offers, or None."""
    writer = scope.get("extensions", {}).get(EXTENSION)
    return writer if isinstance(writer, StreamWriter) else None
