"""A chat request from bytes to bytes inside one worker: what it costs in CPU, the kernel and the broker left out.

    python -m loadtests.micro.request [--requests 3000] [--prompt-words 20] [--cprofile]

Everything is the worker's own code: HTTP protocol, router, middleware, schema, template, tokenizer, engine client, ring,
events, metrics page, log line. Only the two ends are replaced: the broker answers every request with one token and its
finish through a ring in this process, the transport takes every write. Concurrency is 16 connections, kept alive.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import logging
import os
import pstats
import random
import time
from pathlib import Path

import uvicorn
import uvloop
from uvicorn.server import ServerState

from apiserver.app import build_app
from apiserver.engine_client import EngineClient
from apiserver.http_protocol import FleetHttpProtocol
from apiserver.journal import Journal
from apiserver.keyring import Keyring
from apiserver.metrics import WorkerMetrics
from apiserver.preload import preload
from apiserver.services import Services
from apiserver.worker import YOUNG_OBJECTS
from config.model_folder import ModelFolder, read_model_folder
from config.settings import ModelSettings, Settings
from ipc.codec import encode
from ipc.doorbell import Doorbell
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage
from ipc.messages import Envelope, ForWorker, FromWorker, number_of
from ipc.metrics_page import create_metrics_segment
from ipc.record import NO_STOP_TOKEN, Finish, FinishCode, pack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from loadtests.embedded_model import embedded_model
from loadtests.micro.drain import CountingTransport
from loadtests.report import machine, spread, table
from ops import logs

NUM_CONNECTIONS = 16
RING_BYTES = 1 << 20
TOKEN = 253  # any whole one


class OneTokenBroker:
    """Admits everything; an engine behind it gives each request one token, in the next turn of the loop."""

    def __init__(self, writer: RingWriter, bell: Doorbell) -> None:
        self._writer, self._bell = writer, bell
        self._fd = Doorbell.create()
        self._numbers: list[int] = []

    @property
    def fd(self) -> int:
        return self._fd.fd

    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        envelope.pack()
        encode(message)
        if not self._numbers:
            asyncio.get_running_loop().call_soon(self._step)
        self._numbers.append(number_of(envelope.stream_id))

    def _step(self) -> None:
        finishes = [Finish(n, FinishCode.LENGTH, NO_STOP_TOKEN, 40, 1, 0, 0, 10, 10, 10) for n in self._numbers]
        assert self._writer.try_publish(pack_record(self._numbers, [TOKEN] * len(finishes), finishes=finishes), 1)
        self._numbers = []
        self._bell.ring()

    def flush(self) -> None:
        pass

    def receive(self) -> list[ForWorker]:
        return []

    def close(self) -> None:
        pass


class AnsweredTransport(CountingTransport):
    """Tells when a whole response has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        if bytes(data[-5:]) == b"0\r\n\r\n":
            self.answered.set()


def build_services(model: ModelFolder, metrics: WorkerMetrics | None = None) -> Services:
    view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
    format_ring(view, RING_BYTES)
    bell = Doorbell.create()
    page = create_metrics_segment("bench").view
    metrics = metrics or WorkerMetrics(page, model.name, model.max_model_len)
    writer = RingWriter(view)
    client = EngineClient(
        slot=0,
        generation=1,
        rings=[RingReader(view, 1)],
        doorbell=bell,
        connect=lambda _in_flight: OneTokenBroker(writer, bell),
        block_size=16,
        enable_prefix_caching=True,
        on_drained=metrics.on_drained,
        journal=Journal(timeout_s=300.0, max_log_bytes=16 << 20),
    )
    return Services(
        settings=Settings(),
        model=model,
        preloaded=preload(model),
        client=client,
        metrics=metrics,
        exposition=Exposition([page]),
        fleet=FleetPage(FleetPage.create_segment(1, 1).view),
        slot=0,
        keyring=Keyring(()),
    )


def request_bytes(model: str, num_words: int, source: random.Random) -> bytes:
    words = " ".join(source.choices(WORDS, k=num_words))
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": words}],
            "max_completion_tokens": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "ignore_eos": True,
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:8000\r\nuser-agent: bench\r\n"
    head += f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


WORDS = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he"]


async def measure(services: Services, num_requests: int, num_words: int, profile: cProfile.Profile | None) -> float:
    """CPU microseconds per request."""
    config = uvicorn.Config(
        build_app(services), interface="asgi3", proxy_headers=False, lifespan="off", log_config=None, ws="none",
        access_log=False, server_header=False,
    )  # fmt: skip
    config.load()
    state = ServerState()
    source = random.Random(0)
    shares = [
        [request_bytes(services.model.name, num_words, source) for _ in range(num_requests // NUM_CONNECTIONS)]
        for _ in range(NUM_CONNECTIONS)
    ]

    async def client(requests: list[bytes]) -> None:
        protocol, transport = FleetHttpProtocol(config, state, {}), AnsweredTransport()
        protocol.connection_made(transport)
        for request in requests:
            transport.answered.clear()
            protocol.data_received(request)
            await transport.answered.wait()

    await asyncio.gather(*(client(share[:5]) for share in shares))
    if profile is not None:
        profile.enable()
    started_ns = time.thread_time_ns()
    await asyncio.gather(*(client(share) for share in shares))
    spent_ns = time.thread_time_ns() - started_ns
    if profile is not None:
        profile.disable()
    return spent_ns / 1e3 / (num_requests // NUM_CONNECTIONS * NUM_CONNECTIONS)


async def run(num_requests: int, num_words: int, profile: cProfile.Profile | None) -> str:
    model = read_model_folder(embedded_model(), ModelSettings())
    services = build_services(model)
    services.client.start(asyncio.get_running_loop())
    gc.freeze()  # as a worker does
    gc.set_threshold(YOUNG_OBJECTS)
    runs_us = [await measure(services, num_requests, num_words, profile) for _ in range(1 if profile else 5)]
    return table(["words", "CPU us per request"], [[str(num_words), spread(runs_us)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--prompt-words", type=int, default=20)
    parser.add_argument("--cprofile", action="store_true", help="print where the time goes; distorts the figures")
    arguments = parser.parse_args()
    profile = cProfile.Profile() if arguments.cprofile else None
    logs.configure("bench", level="info", log_format="text")
    with Path(os.devnull).open("w") as nowhere, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        logging.getLogger().handlers[0].setStream(nowhere)  # type: ignore[attr-defined]
        text = runner.run(run(arguments.requests, arguments.prompt_words, profile))
    print(machine())
    print(text)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
