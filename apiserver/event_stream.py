"""A streamed response: server-sent events, written as the engine's steps arrive.

Each choice has its event ready-made, but for the text: prefix bytes + escaped text + suffix bytes, in one write per choice and
wake-up; tokens that piled up share one event. The headers wait for the first output, so that a refusal is still a status. A
client that does not read pauses its own stream: tokens are kept as integers up to a bound, then the stream is aborted.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, events as OpenAI's API has them.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Message, Receive, Scope, Send

from apiserver import generation
from apiserver.engine_client import EngineClient, StreamError
from apiserver.errors import ApiError
from apiserver.generation import Choice, GenerationRequest, Usage
from apiserver.http_protocol import StreamWriter, stream_writer_of
from apiserver.metrics import WorkerMetrics
from apiserver.text_stream import TextStream
from apiserver.token_table import escape

logger = logging.getLogger(__name__)

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes events on at once
]
DONE = b"data: [DONE]\n\n"
BYTES_PER_KEPT_TOKEN = 36  # a list slot and an int object


class Events(Protocol):
    """The JSON of one response's events; every method gives whole events, `delta` the two halves around the text."""

    def opening(self, index: int) -> bytes: ...
    def delta(self, index: int) -> tuple[bytes, bytes]: ...
    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...


class StreamedChoice(Choice):
    """Writes its text as events."""

    def __init__(self, index: int, text: TextStream, metrics: WorkerMetrics, response: "StreamedResponse") -> None:
        super().__init__(index, text, metrics, response.on_end)
        self._response = response
        self._prefix, self._suffix = response.events.delta(index)
        self.is_closed = False  # its closing event is written

    def flush(self, now_s: float) -> None:
        response = self._response
        if not response.can_write:
            response.on_paused(self)
            return
        tokens, self.tokens = self.tokens, []
        self.note_tokens(len(tokens), now_s)
        if self.text.matched_stop is not None:
            return  # made before the engine heard of the stop
        piece = self.text.feed_escaped(tokens)
        if piece:
            response.write(self._prefix + piece + self._suffix)
        if self.text.matched_stop is not None:
            self.finish_reason, self.stop_reason = "stop", self.text.matched_stop
            response.stop(self)

    def last_events(self, events: Events) -> bytes:
        """What is left to say when the engine is done with it."""
        rest = b"" if self.text.matched_stop is not None else escape(self.text.finish())
        text = self._prefix + rest + self._suffix if rest else b""
        return text + events.closing(self.index, self.finish_reason or "stop", self.stop_reason)


class Writer(Protocol):
    """Where the pieces of a body go: a StreamWriter, or ASGI messages."""

    on_drained: Callable[[], None]
    on_disconnect: Callable[[], None]

    @property
    def can_write(self) -> bool: ...
    def write(self, data: bytes) -> None: ...


class StreamedResponse:
    """All choices of one request on one connection."""

    def __init__(
        self,
        request: GenerationRequest,
        events: Events,
        texts: list[TextStream],
        client: EngineClient,
        metrics: WorkerMetrics,
        buffer_bytes: int,
    ) -> None:
        self.events = events
        self._request, self._client, self._metrics = request, client, metrics
        self._max_kept_tokens = buffer_bytes // BYTES_PER_KEPT_TOKEN
        self._loop = asyncio.get_running_loop()
        self._first_output: asyncio.Future[None] = self._loop.create_future()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._writer: Writer | None = None  # None until the headers are sent
        self._is_gone = False
        self.choices = [StreamedChoice(index, text, metrics, self) for index, text in enumerate(texts)]

    @property
    def was_disconnected(self) -> bool:
        return self._is_gone

    @property
    def can_write(self) -> bool:
        return self._writer is not None and self._writer.can_write

    def write(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From submission to the last byte. Raises ApiError while there is a status to send."""
        stream_writer = stream_writer_of(scope)
        listener = None
        if stream_writer is not None:
            stream_writer.on_drained, stream_writer.on_disconnect = self._on_drained, self._on_disconnect
            stream_writer.watch()
        else:
            listener = asyncio.create_task(_listen(receive, self._on_disconnect))
        try:
            generation.submit(self._request, list(self.choices), self._client, self._metrics)
            await self._first_output
            if self._is_gone:
                return
            self._raise_early_error()
            await self._respond(send, stream_writer)
        finally:
            if generation.abort(list(self.choices), self._client, self._metrics) and self._is_gone:
                logger.debug("client disconnected", extra={"request_id": self._request.request_id})
            if stream_writer is not None:
                stream_writer.close()
            if listener is not None:
                listener.cancel()

    async def _respond(self, send: Send, stream_writer: StreamWriter | None) -> None:
        if stream_writer is not None:
            stream_writer.open()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        writer: Writer = stream_writer if stream_writer is not None else AsgiWriter(self._done)
        self._writer = writer
        opening = b"".join(self.events.opening(choice.index) for choice in self.choices)
        if opening and not self._is_gone:
            writer.write(opening)
        self._on_drained()
        if isinstance(writer, AsgiWriter):
            await writer.pump(send)
        else:
            await self._done
        if not self._is_gone:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _raise_early_error(self) -> None:
        """A request all of whose choices failed before any output is an HTTP error."""
        errors = [choice.error for choice in self.choices if choice.error is not None]
        if len(errors) == len(self.choices):
            raise generation.api_error(errors[0])

    # ── called by the choices and the connection, never from a task of their own ────────────────────────────────

    def on_paused(self, choice: StreamedChoice) -> None:
        """Nothing can be written now: before the headers, or the client is slow."""
        self._wake()
        if self._writer is not None and len(choice.tokens) > self._max_kept_tokens:
            self._metrics.shed("slow_client").inc()
            self._on_disconnect()

    def stop(self, choice: Choice) -> None:
        """A stop string ended it here; the engine still thinks it goes on, and answers with its finish."""
        assert choice.stream_id is not None
        self._client.stop(choice.stream_id)

    def on_end(self, choice: Choice) -> None:
        self._wake()
        if self.can_write:
            self._close_ended()

    def _wake(self) -> None:
        if not self._first_output.done():
            self._first_output.set_result(None)

    def _on_drained(self) -> None:
        """Bytes may be written (again): everything that waited goes out."""
        now_s = self._loop.time()
        for choice in self.choices:
            if choice.tokens and self.can_write:
                choice.flush(now_s)
        if self.can_write:
            self._close_ended()

    def _close_ended(self) -> None:
        """Write what ended choices have left, and the end of the stream behind the last one."""
        last = []
        for choice in self.choices:
            if choice.has_ended and not choice.is_closed and not choice.tokens:
                choice.is_closed = True
                last.append(self._last_events(choice))
        if last and all(choice.is_closed for choice in self.choices) and not self._done.done():
            if self._request.include_usage and all(choice.error is None for choice in self.choices):
                last.append(self.events.usage(generation.usage_of(self._request, list(self.choices))))
            last.append(DONE)
            self.write(b"".join(last))
            self._done.set_result(None)
        elif last:
            self.write(b"".join(last))

    def _last_events(self, choice: StreamedChoice) -> bytes:
        if choice.error is not None:
            return _error_event(choice.error)
        return choice.last_events(self.events)

    def _on_disconnect(self) -> None:
        """The client is gone, or given up. The aborts follow in `run`."""
        self._is_gone = True
        self._wake()
        if not self._done.done():
            self._done.set_result(None)


class AsgiWriter:
    """The same, over ASGI messages, for servers that do not offer the extension: pieces queue up and a task sends them."""

    def __init__(self, done: "asyncio.Future[None]") -> None:
        self._done = done
        self._pieces: list[bytes] = []
        self._has_pieces = asyncio.Event()
        self.on_drained: Callable[[], None] = lambda: None
        self.on_disconnect: Callable[[], None] = lambda: None
        done.add_done_callback(lambda _: self._has_pieces.set())

    @property
    def can_write(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        self._pieces.append(data)
        self._has_pieces.set()

    async def pump(self, send: Send) -> None:
        """Until the response is done and everything is sent."""
        while self._pieces or not self._done.done():
            await self._has_pieces.wait()
            pieces, self._pieces = self._pieces, []
            if not self._done.done():
                self._has_pieces.clear()
            if pieces:
                await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})


async def _listen(receive: Receive, on_disconnect: Callable[[], None]) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    on_disconnect()


def _error_event(error: StreamError) -> bytes:
    api_error: ApiError = generation.api_error(error)
    return b"data: " + api_error.body() + b"\n\n"


async def collect(
    request: GenerationRequest,
    texts: list[TextStream],
    client: EngineClient,
    metrics: WorkerMetrics,
    scope: Scope,
    receive: Receive,
) -> list[generation.CollectedChoice] | None:
    """All choices, ended; None when the client left meanwhile. Raises ApiError when one failed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bool] = loop.create_future()
    choices: list[generation.CollectedChoice] = []

    def settle(is_complete: bool) -> None:
        if not done.done():
            done.set_result(is_complete)

    def on_end(choice: Choice) -> None:
        if choice.error is not None or all(other.engine_finish is not None for other in choices):
            settle(True)

    def stop(choice: Choice) -> None:
        assert choice.stream_id is not None
        client.stop(choice.stream_id)

    choices += [generation.CollectedChoice(index, text, metrics, on_end, stop) for index, text in enumerate(texts)]
    stream_writer: Any = stream_writer_of(scope)
    listener = None
    if stream_writer is not None:
        stream_writer.on_disconnect = lambda: settle(False)
        stream_writer.watch()
    else:
        listener = asyncio.create_task(_listen(receive, lambda: settle(False)))
    try:
        generation.submit(request, list(choices), client, metrics)
        is_complete = await done
    finally:
        generation.abort(list(choices), client, metrics)
        if stream_writer is not None:
            stream_writer.close()
        if listener is not None:
            listener.cancel()
    if not is_complete:
        return None
    for choice in choices:
        if choice.error is not None:
            raise generation.api_error(choice.error)
    return choices
