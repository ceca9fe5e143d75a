"""A worker on its inherited descriptors: it beats, says when it is ready, and finishes what runs before it goes."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop

from apiserver import worker
from apiserver.preload import preload
from config.model_folder import ModelFolder, read_model_folder
from config.settings import ModelSettings, OpsSettings, ServerSettings, Settings
from ipc.doorbell import Doorbell
from ipc.exposition import Exposition
from ipc.fleet_page import Cell, FleetPage, State
from ipc.handles import WorkerHandles
from ipc.metrics_page import create_metrics_segment
from ipc.record import pack_record
from ipc.ring import RingWriter, format_ring, ring_segment_bytes
from ipc.segment import Segment
from tests.unit.apiserver.in_process import finish
from tests.unit.apiserver.worker_rig import make_model_folder

PATIENCE_S = 10
RING_BYTES = 1 << 16


class Fleet:
    """What a supervisor would have created, with this test as the engine; no broker listens."""

    def __init__(self, folder: Path) -> None:
        self.model: ModelFolder = read_model_folder(make_model_folder(folder / "model"), ModelSettings())
        self.ring_segment = Segment.create("ring", ring_segment_bytes(RING_BYTES))
        format_ring(self.ring_segment.view, RING_BYTES)
        self._ring = RingWriter(self.ring_segment.view)
        self._bell = Doorbell.create()
        self.page_segment = FleetPage.create_segment(1, 1)
        self.cell: Cell = FleetPage(self.page_segment.view).workers[0]
        self.cell.begin_generation(1)
        self.metrics_segment = create_metrics_segment("worker")
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self.handles = WorkerHandles(
            slot=0,
            generation=1,
            listen_fds=(listener.detach(),),
            doorbell_fd=self._bell.fd,
            ring_fds=(self.ring_segment.fd,),
            fleet_fd=self.page_segment.fd,
            metrics_fds=(self.metrics_segment.fd,),
            metrics_index=0,
            broker_endpoint=f"ipc://{folder}/broker",
        )

    def publish(self, *sections: object, rings: bool = True, **more: object) -> None:
        assert self._ring.try_publish(pack_record(*sections, **more), 1)  # type: ignore[arg-type]  # passed on
        if rings:
            self._bell.ring()

    def serve(
        self,
        client: Callable[[], Coroutine[None, None, None]],
        *,
        drain_timeout_s: float = 5,
        timeout_keep_alive_s: float = 75,
    ) -> None:
        """Run the worker on this process's main loop, and the client beside it, until both have ended."""
        server = ServerSettings(timeout_keep_alive_s=timeout_keep_alive_s)
        settings = Settings(server=server, ops=OpsSettings(drain_timeout_s=drain_timeout_s))
        preloaded = preload(self.model)

        async def both() -> None:
            async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.serve(settings, self.model, self.handles, preloaded))
                tasks.create_task(client())

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(both())

    async def is_ready(self) -> None:
        await until(lambda: self.cell.state == State.READY)

    async def start_stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client whose stream has given its first token."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(completion_request(is_stream=True))
        await until(lambda: self.cell.has_work)
        self.publish([1], [20])
        await reader.readuntil(b"data: ")
        return reader, writer


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.005)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    handler = signal.getsignal(signal.SIGINT)
    yield Fleet(tmp_path)
    signal.signal(signal.SIGINT, handler)


def test_a_worker_is_ready_once_it_serves_and_beats_from_its_loop(fleet: Fleet) -> None:
    async def client() -> None:
        await fleet.is_ready()
        _, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        first_beat_ns = fleet.cell.heartbeat_ns
        await until(lambda: fleet.cell.heartbeat_ns > first_beat_ns)
        await until(
            lambda: b'tokenfleet:open_connections{worker="0"} 1.0' in Exposition([fleet.metrics_segment.view]).text()
        )
        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)

    fleet.serve(client)

    assert fleet.cell.state == State.DRAINING
    assert b'tokenfleet:event_loop_lag_seconds_count{worker="0"}' in Exposition([fleet.metrics_segment.view]).text()


def test_sigterm_refuses_new_connections_and_finishes_running_streams(fleet: Fleet) -> None:
    answers: list[bytes] = []

    async def client() -> None:
        await fleet.is_ready()
        reader, writer = await fleet.start_stream()

        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: fleet.cell.state == State.DRAINING)
        await until_refused(fleet.port)
        fleet.publish([1], [21])
        fleet.publish(finishes=[finish(1)])
        answers.append(await reader.read())
        writer.close()

    fleet.serve(client)

    assert b"data: [DONE]" in answers[0]
    assert answers[0].endswith(b"\r\n0\r\n\r\n"), "the body is whole"


def test_a_record_whose_doorbell_nobody_rang_is_read_with_the_next_beat(fleet: Fleet) -> None:
    async def client() -> None:
        await fleet.is_ready()
        reader, writer = await fleet.start_stream()

        fleet.publish([1], [21], rings=False)
        fleet.publish(finishes=[finish(1)], rings=False)
        await reader.readuntil(b"data: [DONE]")

        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)

    fleet.serve(client)


def test_what_outlives_the_drain_is_told_why_it_ends(fleet: Fleet) -> None:
    answers: list[bytes] = []

    async def client() -> None:
        await fleet.is_ready()
        streaming, stream_writer = await fleet.start_stream()
        waiting, body_writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        body_writer.write(completion_request(is_stream=False))
        await until(
            lambda: b'tokenfleet:open_streams{worker="0"} 2.0' in Exposition([fleet.metrics_segment.view]).text()
        )
        os.kill(os.getpid(), signal.SIGTERM)
        answers.extend([await streaming.read(), await waiting.read()])
        stream_writer.close()
        body_writer.close()

    fleet.serve(client, drain_timeout_s=1)

    assert b"the server is shutting down" in answers[0]
    assert b"[DONE]" not in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 503 ")


def test_less_than_a_second_for_a_request_is_still_some_time(fleet: Fleet) -> None:
    answers: list[bytes] = []

    async def client() -> None:
        await fleet.is_ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        writer.write(b"GET /version HTTP/1.1\r\n")
        await asyncio.sleep(0.05)  # what is tested is the passing of time
        writer.write(b"host: x\r\n\r\n")
        answers.append(await reader.read())  # until the connection has been idle for as long
        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)

    fleet.serve(client, timeout_keep_alive_s=0.9)

    assert answers[0].startswith(b"HTTP/1.1 200 ")


def completion_request(*, is_stream: bool) -> bytes:
    body = json.dumps({"prompt": [5, 6, 7], "stream": is_stream, "max_tokens": 8}).encode()
    return f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def until_refused(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        writer.close()
        await asyncio.sleep(0.005)
