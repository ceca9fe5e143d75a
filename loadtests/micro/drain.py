"""Ring record to bytes on a transport: what one streamed token costs a worker in CPU, the kernel's send left out.

    python -m loadtests.micro.drain [--steps 400] [--parser reasoning] [--cprofile]

Everything is the worker's own code: ring, engine client, choices, token table, event envelopes, metrics page, HTTP
protocol. Only the two ends are replaced: the engine is a ring writer in this process, the transport counts bytes. With
`--parser` the text is one that a parser reads: reasoning that goes on, or content in which a call may begin.
"""

import argparse
import asyncio
import cProfile
import os
import random
import time
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from apiserver.answer_parser import AnswerParser
from apiserver.engine_client import EngineClient
from apiserver.event_stream import ChoiceOf, StreamedChoice, StreamedResponse
from apiserver.generation import GenerationRequest, Prompt
from apiserver.hot_path import HotPath
from apiserver.http_protocol import FleetHttpProtocol
from apiserver.journal import Journal
from apiserver.logprobs import TokenTexts
from apiserver.metrics import WorkerMetrics
from apiserver.parsed_choice import parsed_choice_of
from apiserver.parsed_text import OutputFormat, ParsedText
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.reasoning.style import STYLES, Phase
from apiserver.schema.responses import ChatEvents
from apiserver.text_stream import TextStream
from apiserver.token_table import TokenTable, build_token_table
from apiserver.tools.hermes import HermesParser
from config.model_folder import ModelFolder, read_model_folder
from config.settings import ModelSettings, ServerSettings
from ipc.doorbell import Doorbell
from ipc.messages import Envelope, ForWorker, FromWorker, SamplingParams
from ipc.metrics_page import create_metrics_segment
from ipc.record import Finish, FinishCode, pack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from loadtests.embedded_model import embedded_model
from loadtests.report import machine, spread, table

RING_BYTES = 1 << 20
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: 2\r\n\r\n{}"


class NullSocket:
    """What is written directly to a connection's socket goes to the null device."""

    def __init__(self) -> None:
        self._device = Path(os.devnull).open("wb", buffering=0)  # noqa: SIM115  # open as long as the connection

    def fileno(self) -> int:
        return self._device.fileno()

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 0

    getpeername = getsockname


class CountingTransport(asyncio.Transport):
    """Takes every write at once; counts those that do not go directly to the socket."""

    def __init__(self) -> None:
        super().__init__({"socket": NullSocket()})
        self.num_writes = self.num_bytes = 0

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.num_writes += 1
        self.num_bytes += len(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


class SilentBroker:
    """Takes every request and says nothing."""

    def __init__(self) -> None:
        self.fd = Doorbell.create().fd

    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        pass

    def flush(self) -> None:
        pass

    def receive(self) -> list[ForWorker]:
        return []

    def close(self) -> None:
        pass


class Bench:
    """One worker with `num_streams` open chat streams, each on a connection of its own."""

    def __init__(
        self,
        model: ModelFolder,
        token_table: TokenTable,
        num_streams: int,
        output_format: OutputFormat | None,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        page = create_metrics_segment("bench").view
        self.metrics = metrics or WorkerMetrics(page, model.name, model.max_model_len)
        view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
        format_ring(view, RING_BYTES)
        self._writer = RingWriter(view)
        self._bell = Doorbell.create()
        self._client = EngineClient(
            slot=0,
            generation=1,
            rings=[RingReader(view, 1)],
            doorbell=self._bell,
            connect=lambda _in_flight: SilentBroker(),
            block_size=16,
            enable_prefix_caching=True,
            on_drained=self.metrics.on_drained,
            journal=Journal(timeout_s=300.0, max_log_bytes=16 << 20),
            hot_path=HotPath(self.metrics.itl.observe),
        )
        self._token_table = token_table
        self._model_name = model.name
        self._whole = [number for number, text in enumerate(token_table.escaped) if text is not None]
        self._num_streams = num_streams
        self._format = output_format
        self._random = random.Random(0)
        self.transports: list[CountingTransport] = []

    async def open(self) -> None:
        """Requests are read, their streams have a first token, headers are written."""
        config = uvicorn.Config(
            self._answer, interface="asgi3", proxy_headers=False, lifespan="off", log_config=None, ws="none"
        )
        config.load()
        state = ServerState()
        for _ in range(self._num_streams):
            protocol = FleetHttpProtocol(config, state, {})
            transport = CountingTransport()
            protocol.connection_made(transport)
            protocol.data_received(REQUEST)
            self.transports.append(transport)
        self._tasks = list(state.tasks)
        while self._client.num_streams < self._num_streams:
            await asyncio.sleep(0)
        self._publish()
        self._client.drain()
        while any(transport.num_bytes == 0 for transport in self.transports):
            await asyncio.sleep(0)
        self._numbers = range(1, self._num_streams + 1)

    async def close(self) -> None:
        finishes = [Finish(number, FinishCode.LENGTH, 8, 0, 1, 0, 0, 0, 0, 0) for number in self._numbers]
        assert self._writer.try_publish(pack_record(finishes=finishes), 1)
        self._client.drain()
        await asyncio.gather(*self._tasks)

    def step(self, tokens_per_drain: int) -> int:
        """CPU nanoseconds of one wake-up that finds this many records."""
        for _ in range(tokens_per_drain):
            self._publish()
        self._bell.ring()
        started_ns = time.thread_time_ns()
        self._client.drain()
        return time.thread_time_ns() - started_ns

    def _publish(self) -> None:
        numbers = range(1, self._num_streams + 1)
        tokens = self._random.choices(self._whole, k=self._num_streams)
        assert self._writer.try_publish(pack_record(numbers, tokens), 1)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = GenerationRequest(
            request_id="bench",
            prompts=(Prompt(bytes(32)),),
            n=1,
            sampling=SamplingParams(max_tokens=1 << 20),
            max_tokens=(1 << 20,),
            is_stream=True,
        )
        texts = TokenTexts(self._token_table, _NoDecoder())
        events = ChatEvents("chatcmpl-00000000000000000000000000000000", self._model_name, texts)
        buffer_bytes = ServerSettings().stream_buffer_bytes
        text: TextStream = TextStream(self._token_table, _NoDecoder())
        choice_of: ChoiceOf = StreamedChoice
        if self._format is not None:
            text, choice_of = ParsedText(self._format, self._token_table, _NoDecoder()), parsed_choice_of(events)
        response = StreamedResponse(request, events, [text], self._client, self.metrics, buffer_bytes, choice_of)
        await response.run(scope, receive, send)


class _NoDecoder:
    def decode(self, ids: object, skip_special_tokens: bool = True) -> str:
        raise NotImplementedError("the token table decodes")

    def id_to_token(self, id: int) -> str | None:
        raise NotImplementedError("the token table decodes")


async def measure(bench: Bench, steps: int, tokens_per_drain: int, num_streams: int) -> list[float]:
    """Microseconds per token, of five runs."""
    runs_us = []
    for _ in range(5):
        total_ns = sum(bench.step(tokens_per_drain) for _ in range(steps // tokens_per_drain))
        runs_us.append(total_ns / 1e3 / (steps // tokens_per_drain * tokens_per_drain * num_streams))
    return runs_us


FORMATS: dict[str, OutputFormat | None] = {
    "none": None,
    "reasoning": OutputFormat(lambda: ReasoningSplitter(STYLES["qwen3"], Phase.THINKING)),
    "tools": OutputFormat(lambda: AnswerParser(None, HermesParser({}))),
}


async def run(steps: int, parser: str, profile: cProfile.Profile | None) -> str:
    path = embedded_model()
    model = read_model_folder(path, ModelSettings())
    token_table = build_token_table(model)
    assert token_table is not None, "the embedded model is byte-level BPE"
    rows = []
    for num_streams in (64, 256):
        bench = Bench(model, token_table, num_streams, FORMATS[parser])
        await bench.open()
        bench.step(1)
        for tokens_per_drain in (1, 8):
            if profile is not None:
                profile.enable()
            runs_us = await measure(bench, steps, tokens_per_drain, num_streams)
            if profile is not None:
                profile.disable()
            rows.append([str(num_streams), str(tokens_per_drain), spread(runs_us, 2)])
        await bench.close()
    return table(["streams", "tokens per stream and wake-up", "CPU us per token"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="engine steps per run")
    parser.add_argument("--parser", choices=FORMATS, default="none", help="what reads the text")
    parser.add_argument("--cprofile", action="store_true", help="print where the time goes; distorts the figures")
    arguments = parser.parse_args()
    profile = cProfile.Profile() if arguments.cprofile else None
    print(machine())
    print(asyncio.run(run(arguments.steps, arguments.parser, profile)))
    if profile is not None:
        profile.print_stats("tottime")


if __name__ == "__main__":
    main()
