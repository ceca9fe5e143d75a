"""The seam over uvicorn with real sockets and the real loop: clients that leave or do not read, many requests on one
connection, and a worker that leaves."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
import uvloop

from apiserver.http_protocol import FleetHttpProtocol
from ipc.messages import Abort, make_stream_id
from tests.unit.apiserver.in_process import finish
from tests.unit.apiserver.stream_rig import HELLO, WORLD, Server

REQUEST = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}"
PATIENCE_S = 10


class _Quiet(uvicorn.Server):
    """Signals are the test runner's."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a wider type
        return nullcontext()


@dataclass(frozen=True)
class Serving:
    port: int
    connections: set[FleetHttpProtocol]


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Serving]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        server.app, interface="asgi3", http=FleetHttpProtocol, proxy_headers=False, lifespan="off", log_config=None,
        ws="none", timeout_graceful_shutdown=1,
    )  # fmt: skip
    uvicorn_server = _Quiet(config)
    server.worker.client.start(asyncio.get_running_loop())
    task = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
    await until(lambda: uvicorn_server.started)
    try:
        yield Serving(listener.getsockname()[1], uvicorn_server.server_state.connections)  # type: ignore[arg-type]  # ours
    finally:
        uvicorn_server.should_exit = True
        await task
        server.worker.client.close()


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():
            await asyncio.sleep(0.002)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


def test_streams_follow_each_other_on_one_connection() -> None:
    async def client() -> None:
        server = Server()
        async with serving(server) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            for number in (1, 2, 3):
                writer.write(REQUEST)
                await until(lambda number=number: len(server.worker.broker.generates) == number)  # type: ignore[misc]
                server.worker.publish([number], [HELLO])
                server.worker.publish([number], [WORLD], finishes=[finish(number)])
                async with asyncio.timeout(PATIENCE_S):
                    answer = await reader.readuntil(b"\r\n0\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                assert answer.count(b"data: [DONE]") == 1
            writer.close()

    run(client)


def test_a_client_that_closes_its_socket_has_its_stream_aborted() -> None:
    async def client() -> None:
        server = Server()
        async with serving(server) as at:
            _, writer = await asyncio.open_connection("127.0.0.1", at.port)
            writer.write(REQUEST)
            await until(lambda: len(server.worker.broker.generates) == 1)
            server.worker.publish([1], [HELLO])

            writer.close()

            await until(lambda: server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1))])

    run(client)


def test_a_client_that_does_not_read_is_cut_and_its_neighbour_is_not_slowed() -> None:
    async def client() -> None:
        server = Server()
        async with serving(server) as at:
            stuck = socket.socket()
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stuck, ("127.0.0.1", at.port))
            stuck.send(REQUEST)
            await until(lambda: len(server.worker.broker.generates) == 1)
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            writer.write(REQUEST)
            await until(lambda: len(server.worker.broker.generates) == 2)

            num_neighbour_tokens = 0
            async with asyncio.timeout(PATIENCE_S):
                while not server.worker.broker.aborts:
                    server.worker.publish([1] * 200, [WORLD] * 200)
                    server.worker.publish([2], [HELLO])
                    num_neighbour_tokens += 1
                    await reader.readuntil(b"Hello")

            assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1))]
            assert server.worker.samples()['tokenfleet:shed_total{reason="slow_client"}'] == "1.0"
            assert num_neighbour_tokens > 1
            stuck.close()
            writer.close()

    run(client)


async def answered(server: Server, number: int, reader: asyncio.StreamReader) -> bytes:
    """The engine's part of request `number`, which is on its way, and what its client gets."""
    await until(lambda: len(server.worker.broker.generates) == number)
    server.worker.publish([number], [HELLO])
    server.worker.publish([number], [WORLD], finishes=[finish(number)])
    async with asyncio.timeout(PATIENCE_S):
        return await reader.readuntil(b"\r\n0\r\n\r\n")


def test_a_worker_that_leaves_still_answers_a_client_that_has_only_connected() -> None:
    async def client() -> None:
        server = Server()
        async with serving(server) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            await until(lambda: len(at.connections) == 1)

            next(iter(at.connections)).shutdown()
            await asyncio.sleep(0.05)  # its request takes a while
            writer.write(REQUEST)

            answer = await answered(server, 1, reader)
            assert answer.count(b"data: [DONE]") == 1 and b"\r\nconnection: close\r\n" in answer
            assert await reader.read() == b"", "it was the last"
            writer.close()

    run(client)


def test_a_worker_that_leaves_answers_what_an_idle_connection_was_just_sent_and_closes_the_others() -> None:
    async def client() -> None:
        server = Server()
        async with serving(server) as at:
            clients = [await asyncio.open_connection("127.0.0.1", at.port) for _ in range(2)]
            for number, (reader, writer) in enumerate(clients, 1):
                writer.write(REQUEST)
                await answered(server, number, reader)

            os.write(clients[0][1].get_extra_info("socket").fileno(), REQUEST)  # in the kernel; no loop has read it
            for connection in list(at.connections):
                connection.shutdown()

            assert await clients[1][0].read() == b""
            assert (await answered(server, 3, clients[0][0])).count(b"data: [DONE]") == 1
            assert await clients[0][0].read() == b""
            for _, writer in clients:
                writer.close()

    run(client)


def test_a_worker_that_leaves_does_not_wait_long_for_who_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apiserver.http_protocol.LAST_REQUEST_S", 0.02)

    async def client() -> None:
        async with serving(Server()) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            await until(lambda: len(at.connections) == 1)

            next(iter(at.connections)).shutdown()

            async with asyncio.timeout(2):
                assert await reader.read() == b""
            writer.close()

    run(client)
