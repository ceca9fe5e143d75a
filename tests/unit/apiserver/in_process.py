"""A worker's streaming half without processes: the test is the engine (a ring writer), the broker and the client."""

import asyncio
import os
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from apiserver.engine_client import EngineClient
from apiserver.http_protocol import FleetHttpProtocol
from apiserver.journal import Journal
from apiserver.metrics import WorkerMetrics
from apiserver.sink import StreamError
from apiserver.token_table import TokenTable
from ipc.doorbell import Doorbell
from ipc.exposition import Exposition
from ipc.messages import Abort, Envelope, ForWorker, FromWorker, Generate, Resume, StreamId
from ipc.metrics_page import create_metrics_segment
from ipc.record import NO_STOP_TOKEN, Failure, Finish, FinishCode, Scored, pack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes

RING_BYTES = 1 << 16
PIECES = [b"Hello", b" world", b",", "日本".encode(), b'"quote"\n', b"\xf0\x9f", b"\x98\x80", b"<end>", b"ST", b"OP!"]
SPECIAL = 7
SMILE = (5, 6)  # the two halves of an emoji
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def token_table() -> TokenTable:
    return TokenTable([*PIECES], frozenset({SPECIAL}))


class NoDecoder:
    """The table knows all tokens."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        raise AssertionError(f"decode of {ids}, {skip_special_tokens}")

    def id_to_token(self, id: int) -> str | None:
        raise AssertionError(f"token of {id}")


class ScriptedBroker:
    """Keeps what the worker sends; gives it what the test puts into `inbox`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.sent: list[FromWorker] = []
        self.num_flushed = 0  # of those
        self.prompts: list[bytes | None] = []
        self.envelopes: list[Envelope] = []
        self.inbox: list[ForWorker] = []
        self.in_flight: Callable[[], list[int]] = list

    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        self.envelopes.append(envelope)
        self.sent.append(message)
        self.prompts.append(prompt)

    def flush(self) -> None:
        self.num_flushed = len(self.sent)

    def receive(self) -> list[ForWorker]:
        messages, self.inbox = self.inbox, []
        return messages

    def close(self) -> None:
        os.close(self.fd)

    @property
    def generates(self) -> list[Generate]:
        return [message for message in self.sent if isinstance(message, Generate)]

    @property
    def resumes(self) -> list[Resume]:
        return [message for message in self.sent if isinstance(message, Resume)]

    @property
    def aborts(self) -> list[Abort]:
        return [message for message in self.sent if isinstance(message, Abort)]


class RecordingSink:
    """Writes down what happens to one stream."""

    def __init__(self) -> None:
        self.tokens: list[int] | array[int] = []
        self.scores: list[Scored] = []
        self.stream_id: StreamId | None = None
        self.submitted_s = time.monotonic()
        self.attachment: bytes | None = None
        self.flushes: list[list[int]] = []
        self.ends: list[Finish | StreamError] = []

    def take(self, token: int, now_s: float) -> None:
        self.tokens.append(token)
        self.flush(now_s)

    def flush(self, now_s: float) -> None:
        self.flushes.append(list(self.tokens))
        self.tokens = []

    def finish(self, finish: Finish) -> None:
        self.ends.append(finish)

    def fail(self, error: StreamError) -> None:
        self.ends.append(error)


class Worker:
    """Engine client and metrics on a ring of their own."""

    def __init__(
        self, *, block_size: int = 4, enable_prefix_caching: bool = True, journal: Journal | None = None
    ) -> None:
        self.view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
        format_ring(self.view, RING_BYTES)
        self.ring = RingWriter(self.view)
        self.bell = Doorbell.create()
        self.broker = ScriptedBroker()
        self.page = create_metrics_segment("test").view
        self.metrics = WorkerMetrics(self.page, "test", 1024)
        self.client = EngineClient(
            slot=3,
            generation=1,
            rings=[RingReader(self.view, 1)],
            doorbell=self.bell,
            connect=self._connect,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            on_drained=self.metrics.on_drained,
            journal=journal,
            on_resumed=self.metrics.streams_resumed.inc,
        )

    def _connect(self, in_flight: Callable[[], list[int]]) -> ScriptedBroker:
        self.broker.in_flight = in_flight
        return self.broker

    def publish(
        self,
        streams: Sequence[int] = (),
        tokens: Sequence[int] = (),
        *,
        bulks: Sequence[tuple[int, Sequence[int]]] = (),
        finishes: Sequence[Finish] = (),
        failures: Sequence[Failure] = (),
        scored: Sequence[Scored] = (),
    ) -> None:
        """One engine step: a record, and the bell."""
        record = pack_record(streams, tokens, bulks=bulks, finishes=finishes, failures=failures, scored=scored)
        assert self.ring.try_publish(record, 1), "the test's ring is full"
        self.bell.ring()

    def step(self, streams: Sequence[int] = (), tokens: Sequence[int] = (), **sections: Sequence[Finish]) -> None:
        """A record, taken in at once."""
        self.publish(streams, tokens, **sections)  # type: ignore[arg-type]  # only finishes are given this way
        self.client.drain()

    def samples(self) -> dict[str, str]:
        """Lines of /metrics, `name{labels}` to value."""
        lines = Exposition([self.page]).text().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def finish(stream: int, code: FinishCode = FinishCode.LENGTH, **fields: int) -> Finish:
    values = {
        "num_prompt_tokens": 4, "num_cached_tokens": 0, "num_output_tokens": 2, "stop_token_id": NO_STOP_TOKEN,
        "num_preemptions": 0, "queue_us": 1000, "prefill_us": 2000, "decode_us": 3000, **fields,
    }  # fmt: skip
    return Finish(stream=stream, code=code, **values)


class Connection(asyncio.Transport):
    """A client's connection as the protocol sees it; the test reads `received` and plays the client's bad manners."""

    def __init__(self, app: App) -> None:
        super().__init__()
        config = uvicorn.Config(
            app, interface="asgi3", proxy_headers=False, lifespan="off", log_config=None, ws="none", date_header=False,
            server_header=False,
        )  # fmt: skip
        config.load()
        self._server_state = ServerState()
        self._is_closing = False
        self.received = b""
        self.was_aborted = False
        self.reads_bytes = 1 << 30  # then the client stops reading
        self.protocol = FleetHttpProtocol(config, self._server_state, {})
        self.protocol.connection_made(self)

    def request(self, *, version: str = "1.1") -> None:
        self.protocol.data_received(f"POST / HTTP/{version}\r\nhost: test\r\ncontent-length: 2\r\n\r\n{{}}".encode())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The test says when the client is slow."""

    def pause(self) -> None:
        self.protocol.pause_writing()

    def resume(self) -> None:
        self.protocol.resume_writing()

    def leave(self) -> None:
        """The client closes; what is written from now on would raise, as uvloop's transports do."""
        self._is_closing = True
        self.protocol.connection_lost(None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing:
            raise RuntimeError("unable to perform operation on a closed transport")
        self.received += bytes(data)
        if len(self.received) >= self.reads_bytes and not self.protocol.flow.write_paused:
            self.pause()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self.was_aborted = self._is_closing = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    async def settle(self) -> None:
        """Until the requests in progress can do nothing more by themselves."""
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def num_running(self) -> int:
        return len(self._server_state.tasks)

    @property
    def head(self) -> str:
        return self.received.partition(b"\r\n\r\n")[0].decode().lower()

    @property
    def body(self) -> bytes:
        """Of one chunked response, or the bytes up to the close."""
        rest = self.received.partition(b"\r\n\r\n")[2]
        if "transfer-encoding: chunked" not in self.head:
            return rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body += rest[:length]
            assert rest[length : length + 2] == b"\r\n"
            rest = rest[length + 2 :]
            if length == 0:
                break
        return body
