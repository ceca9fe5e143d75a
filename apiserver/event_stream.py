"""The answers to generation requests: a stream of server-sent events, written as the engine's steps arrive, or one body.

Each choice has its event ready-made, but for the text: prefix bytes + escaped text + suffix bytes, in one write per choice
and wake-up; tokens that piled up share one event. The headers wait for the first output, so that a refusal is still a
status. A client that does not read pauses its own stream: tokens are held as numbers up to a bound, then it is cut.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, events as OpenAI's API has them.
"""

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from apiserver import generation
from apiserver.asgi_writer import AsgiWriter
from apiserver.engine_client import EngineClient
from apiserver.errors import ApiError
from apiserver.generation import Choice, CollectedChoice, EmbeddedChoice, GenerationRequest, Usage
from apiserver.hot_path import Lane, duplicate_or_none
from apiserver.http_protocol import ConnectionListener, stream_writer_of
from apiserver.metrics import WorkerMetrics
from apiserver.sink import StreamError
from apiserver.text_stream import TextStream
from apiserver.token_table import escape
from ipc.messages import number_of
from ipc.record import Finish, Scored

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes events on at once
]
SHUTDOWN = StreamError("shutdown", "the server is shutting down", retry_after_s=1)
NUM_HELD_LOOSELY = 64  # tokens; more of one choice are packed: 4 bytes each instead of an object
BYTES_PER_HELD_TOKEN = 5  # packed, with the room to grow
BYTES_PER_HELD_SCORE = 400  # a Scored without alternatives
BYTES_PER_HELD_ALTERNATIVE = 80


class Events(Protocol):
    """The JSON of one response's events; every method gives whole events, `delta` the two halves around the text.
    `logprobs` is their part of a whole body; `done` ends every stream, also one that failed. Any: JSON."""

    @property
    def done(self) -> bytes: ...
    def opening(self, index: int) -> bytes: ...
    def delta(self, index: int) -> tuple[bytes, bytes]: ...
    def scored(self, index: int, text: bytes, scores: list[Scored]) -> bytes: ...
    def logprobs(self, scores: list[Scored]) -> dict[str, Any]: ...
    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...
    def failed(self, error: ApiError) -> bytes: ...


class Writer(Protocol):
    """Where the pieces of a body go: a StreamWriter or an AsgiWriter."""

    @property
    def is_paused(self) -> bool: ...
    @property
    def direct_fd(self) -> int | None: ...
    def listen(self, listener: ConnectionListener) -> None: ...
    def open(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def write_rest(self, rest: bytes) -> None: ...
    def hold(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    async def finish(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


class StreamedChoice(Choice):
    """Writes its text as events."""

    __slots__ = ("_lane", "_prefix", "_response", "_suffix", "is_closed")

    def __init__(self, index: int, text: TextStream, metrics: WorkerMetrics, response: "StreamedResponse") -> None:
        super().__init__(index, text, metrics, response.on_end)
        self._response = response
        self._prefix, self._suffix = response.events.delta(index)
        self._lane: Lane | None = None  # while its tokens may go out by themselves
        self.is_closed = False  # its last event is written

    @property
    def num_tokens(self) -> int:
        self._note_lane()
        return super().num_tokens

    def choose_way(self) -> None:
        """To be called whenever the text or the connection may have come to another state."""
        pieces, fd = self.text.ready, self._response.direct_fd
        if pieces is None or fd is None or self.stream_id is None or self.has_ended:
            self._leave_lane()
        elif self._lane is not None:
            self._lane.last_s = self._last_token_s
        elif (own_fd := duplicate_or_none(fd)) is not None:
            self._lane = Lane(pieces, self._prefix, self._suffix, own_fd, self._last_token_s, self)
            self._response.hot_path.open(number_of(self.stream_id), self._lane)

    def on_blocked(self, rest: bytes) -> None:
        """apiserver.hot_path.Rider."""
        self._note_lane()
        self._lane = None
        self._response.write_rest(rest)

    def _note_lane(self) -> None:
        """What went out through the lane, for those who count."""
        lane = self._lane
        if lane is not None and lane.count:
            self.text.num_tokens += lane.count
            lane.count, self._last_token_s = 0, lane.last_s

    def _leave_lane(self) -> None:
        if self._lane is not None:
            assert self.stream_id is not None
            self._note_lane()
            self._lane = None
            self._response.hot_path.close(number_of(self.stream_id))

    def flush(self, now_s: float) -> None:
        """The exact way, for any number of tokens, a client that does not read, and stop strings."""
        response = self._response
        if not response.can_write:
            response.hold(self)
            return
        tokens, self.tokens = self.tokens, []
        self._note_lane()
        self.note_tokens(len(tokens), now_s)
        num_before = self.text.num_tokens
        piece = self.text.feed_escaped(tokens)
        num_counted = self.text.num_tokens - num_before
        if not num_counted and self.text.matched_stop is not None:
            self.scores.clear()  # of tokens that came behind it
        if self.scores:
            response.write(self._scored_event(piece, num_counted))
        elif piece:
            response.write(self._prefix + piece + self._suffix)
        if self.text.has_stop_strings and self.finish_reason is None and self._has_stopped():
            response.stop(self)
        self.choose_way()

    def _scored_event(self, piece: bytes, num_tokens: int) -> bytes:
        """Text and the scores of the tokens that count; those behind a stop string never do."""
        scores, self.scores = self.scores[:num_tokens], self.scores[num_tokens:]
        return self._response.events.scored(self.index, piece, scores)

    def finish(self, finish: Finish) -> None:
        self._leave_lane()
        super().finish(finish)

    def fail(self, error: StreamError) -> None:
        self._leave_lane()
        super().fail(error)

    def release(self) -> None:
        self._leave_lane()
        super().release()
        del self._response

    def last_events(self) -> bytes:
        """What is left to say when the engine is done with it."""
        events = self._response.events
        if self.error is not None:
            return events.failed(generation.api_error(self.error))
        rest = escape(self.text.finish(self.stop_token_id))
        self._has_stopped()
        if self.scores and self.text.matched_stop is None:
            text = self._scored_event(rest, len(self.scores))
        else:
            text = self._prefix + rest + self._suffix if rest else b""
        return text + events.closing(self.index, self.finish_reason or "stop", self.stop_reason)

    def _has_stopped(self) -> bool:
        """Whether a stop string ended the text. The engine does not know; it still owes its finish."""
        if self.text.matched_stop is None:
            return False
        self.finish_reason, self.stop_reason = "stop", self.text.matched_stop
        return True


ChoiceOf = Callable[[int, TextStream, WorkerMetrics, "StreamedResponse"], StreamedChoice]
"""A choice of the response, where it is of another kind than StreamedChoice."""


class StreamedResponse:
    """All choices of one request on one connection, whose listener it is."""

    __slots__ = (
        "_client", "_done", "_first_output", "_is_gone", "_max_held_tokens", "_metrics", "_num_open", "_request",
        "_writer", "can_write", "choices", "events", "hot_path", "usage", "write",
    )  # fmt: skip

    def __init__(
        self,
        request: GenerationRequest,
        events: Events,
        texts: list[TextStream],
        client: EngineClient,
        metrics: WorkerMetrics,
        buffer_bytes: int,
        choice_of: ChoiceOf = StreamedChoice,
    ) -> None:
        self.events = events
        self.can_write = False  # the headers are sent, and the client reads
        self.write: Callable[[bytes], None] = _refuse_write
        self.hot_path = client.hot_path
        self._request, self._client, self._metrics = request, client, metrics
        self._max_held_tokens = buffer_bytes // _held_bytes(request) // len(texts)  # per choice
        loop = asyncio.get_running_loop()
        self._first_output: asyncio.Future[None] = loop.create_future()
        self._done: asyncio.Future[None] = loop.create_future()
        self._writer: Writer | None = None  # None until the headers are sent
        self._is_gone = False
        self.choices = [choice_of(index, text, metrics, self) for index, text in enumerate(texts)]
        self._num_open = len(self.choices)
        self.usage: Usage | None = None  # once all choices have ended

    @property
    def was_disconnected(self) -> bool:
        return self._is_gone

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From submission to the last byte. Raises ApiError while there is a status to send."""
        writer = _writer_of(scope, receive, send)
        writer.listen(self)
        try:
            if not self._is_gone:
                await self._stream(writer, send)
        except asyncio.CancelledError:
            self._say_shutdown()
            raise
        finally:
            generation.abort(self.choices, self._client, self._metrics)
            writer.close()
            for choice in self.choices:
                choice.release()

    async def _stream(self, writer: Writer, send: Send) -> None:
        generation.submit(self._request, self.choices, self._client, self._metrics)
        await self._first_output
        if self._is_gone:
            return
        self._raise_early_error()
        writer.open()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._begin(writer)
        await self._done
        if not self._is_gone:
            await writer.finish()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _begin(self, writer: Writer) -> None:
        """Headers, opening and what has piled up leave in one write; of a whole response, with the end."""
        if self._is_gone:
            return
        self._writer, self.write = writer, writer.hold
        opening = b"".join([self.events.opening(choice.index) for choice in self.choices])
        if opening:
            writer.hold(opening)
        if not writer.is_paused:
            self.on_resumed()
        self.write = writer.write
        if not self._done.done():
            writer.flush()
            self._choose_ways()

    @property
    def direct_fd(self) -> int | None:
        """Where a whole chunk may be written to at once: nothing waits in front of it."""
        return self._writer.direct_fd if self.can_write and self._writer is not None else None

    def write_rest(self, rest: bytes) -> None:
        """Of a chunk that was written directly, what the kernel did not take."""
        assert self._writer is not None
        self._writer.write_rest(rest)

    def _choose_ways(self) -> None:
        for choice in self.choices:
            choice.choose_way()

    def _raise_early_error(self) -> None:
        """A request all of whose choices failed before any output is an HTTP error."""
        errors = [choice.error for choice in self.choices if choice.error is not None]
        if len(errors) == len(self.choices):
            raise generation.api_error(errors[0])

    def _say_shutdown(self) -> None:
        """The server's drain deadline has cancelled the request. Raises ApiError while there is a status to send."""
        if self._writer is None:
            raise generation.api_error(SHUTDOWN) from None
        if self.can_write:
            self.write(self.events.failed(generation.api_error(SHUTDOWN)))

    # ── from the choices ─────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, choice: StreamedChoice) -> None:
        """It has tokens and cannot write: before the headers, or the client is slow, or gone."""
        self._wake()
        if len(choice.tokens) > NUM_HELD_LOOSELY and isinstance(choice.tokens, list):
            choice.tokens = array("I", choice.tokens)
        if self._writer is not None and not self._is_gone and len(choice.tokens) > self._max_held_tokens:
            self._metrics.shed("slow_client").inc()
            self._writer.abort()
            self.on_disconnected()

    def stop(self, choice: StreamedChoice) -> None:
        """A stop string ended it here; the engine answers with its finish."""
        assert choice.stream_id is not None
        self._client.stop(choice.stream_id)

    def on_end(self, choice: Choice) -> None:
        self._wake()
        if self.can_write:
            self._close(self.choices[choice.index])

    def _close(self, choice: StreamedChoice) -> None:
        """Write what an ended choice has left, and behind the last one the end of the stream."""
        choice.is_closed = True
        self._num_open -= 1
        data = choice.last_events()
        if self._num_open:
            self.write(data)
            return
        assert self._writer is not None
        self.usage = generation.usage_of(self._request, self.choices)
        if self._request.include_usage and all(other.error is None for other in self.choices):
            data += self.events.usage(self.usage)
        self._writer.hold(data + self.events.done)
        self._done.set_result(None)

    def _wake(self) -> None:
        if not self._first_output.done():
            self._first_output.set_result(None)

    # ── from the connection ──────────────────────────────────────────────────────────────────────────────────────

    def on_paused(self) -> None:
        self.can_write = False
        self._choose_ways()

    def on_resumed(self) -> None:
        """Everything that waited goes out, until the client is slow again."""
        if self._writer is None or self._is_gone:
            return
        self.can_write = True
        now_s = time.monotonic()
        for choice in self.choices:
            if choice.tokens and self.can_write:
                choice.flush(now_s)
            if choice.has_ended and not choice.is_closed and self.can_write:
                self._close(choice)
        self._choose_ways()

    def on_disconnected(self) -> None:
        """The client is gone. The aborts follow in `run`, in the next turn of the loop."""
        self._is_gone = True
        self.can_write = False
        self._choose_ways()
        self._wake()
        if not self._done.done():
            self._done.set_result(None)


async def collect(
    request: GenerationRequest,
    texts: list[TextStream],
    client: EngineClient,
    metrics: WorkerMetrics,
    scope: Scope,
    receive: Receive,
    kind: type[CollectedChoice] = CollectedChoice,
) -> list[CollectedChoice] | None:
    """All choices, ended; None when the client left meanwhile. Raises ApiError when one failed."""
    collection = _Collection(texts, client, metrics, EmbeddedChoice if request.pooling else kind)
    writer = _writer_of(scope, receive, _send_nothing)
    writer.listen(collection)
    try:
        if not collection.is_settled:
            generation.submit(request, collection.choices, client, metrics)
        is_complete = await collection.wait()
    except asyncio.CancelledError:  # the server's drain deadline
        raise generation.api_error(SHUTDOWN) from None
    finally:
        generation.abort(collection.choices, client, metrics)
        writer.close()
        for choice in collection.choices:
            choice.release()
    if not is_complete:
        return None
    for choice in collection.choices:
        if choice.error is not None:
            raise generation.api_error(choice.error)
    return collection.choices


class _Collection:
    """The choices of one body, whose connection it listens to: settled when all have ended, one failed or nobody waits."""

    def __init__(
        self, texts: list[TextStream], client: EngineClient, metrics: WorkerMetrics, kind: type[CollectedChoice]
    ) -> None:
        self._client = client
        self._is_complete: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.choices = [kind(index, text, metrics, self._on_end, self._stop) for index, text in enumerate(texts)]
        self._num_open = len(self.choices)

    @property
    def is_settled(self) -> bool:
        return self._is_complete.done()

    async def wait(self) -> bool:
        """False: the client left."""
        return await self._is_complete

    def on_paused(self) -> None:
        pass

    def on_resumed(self) -> None:
        pass

    def on_disconnected(self) -> None:
        self._settle(False)

    def _on_end(self, choice: Choice) -> None:
        self._num_open -= 1
        if choice.error is not None or self._num_open == 0:
            self._settle(True)

    def _stop(self, choice: Choice) -> None:
        assert choice.stream_id is not None
        self._client.stop(choice.stream_id)

    def _settle(self, is_complete: bool) -> None:
        if not self._is_complete.done():
            self._is_complete.set_result(is_complete)


def _writer_of(scope: Scope, receive: Receive, send: Send) -> Writer:
    writer = stream_writer_of(scope)
    return writer if writer is not None else AsgiWriter(receive, send)


def _held_bytes(request: GenerationRequest) -> int:
    """Of one token that waits for a client to read."""
    if not request.has_logprobs:
        return BYTES_PER_HELD_TOKEN
    num_alternatives = max(request.sampling.num_logprobs, len(request.sampling.logprob_token_ids) + 1)
    return BYTES_PER_HELD_TOKEN + BYTES_PER_HELD_SCORE + num_alternatives * BYTES_PER_HELD_ALTERNATIVE


async def _send_nothing(_message: object) -> None:
    raise AssertionError("a collected body is not sent piece by piece")


def _refuse_write(_data: bytes) -> None:
    raise AssertionError("the headers are not sent yet")
