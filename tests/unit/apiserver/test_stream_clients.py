"""What a client does to its stream: reads slowly or not at all, leaves, comes with the next request, speaks HTTP/1.0."""

import pytest

from apiserver.event_stream import (
    NUM_HELD_LOOSELY,
)
from ipc.messages import Abort, make_stream_id
from tests.unit.apiserver.in_process import Connection, finish
from tests.unit.apiserver.stream_rig import COMMA, HELLO, WORLD, Server, contents, events, request, run


def test_a_paused_client_gets_everything_when_it_reads_again() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()
        written = len(connection.received)

        for token in (COMMA, WORLD):
            server.worker.step([1], [token])
        server.worker.step(finishes=[finish(1)])
        await connection.settle()
        assert len(connection.received) == written, "nothing is written to a paused transport"
        connection.resume()
        await connection.settle()

        assert contents(connection.body) == ["Hello", ", world"]
        assert events(connection.body)[-1] == "[DONE]"

    run(client)


def test_a_long_text_that_waited_for_its_client_comes_whole() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()

        for _ in range(NUM_HELD_LOOSELY + 20):
            server.worker.step([1], [COMMA])
        connection.resume()
        server.worker.step(finishes=[finish(1)])
        await connection.settle()

        assert "".join(contents(connection.body)) == "Hello" + "," * (NUM_HELD_LOOSELY + 20)

    run(client)


def test_a_client_that_stops_reading_at_the_opening_event_gets_no_more_until_it_reads() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        connection.reads_bytes = 1 + len(b"HTTP/1.1 200 OK") + 150  # the headers, and some of the event behind them
        server.worker.step([1], [HELLO])
        await connection.settle()

        assert connection.head.startswith("http/1.1 200 ok")
        assert connection.protocol.flow.write_paused
        server.worker.step([1], [WORLD])
        assert contents(connection.body) == ["Hello"], "what left with the headers, and nothing behind it"
        connection.reads_bytes = 1 << 30
        connection.resume()
        assert contents(connection.body) == ["Hello", " world"]

    run(client)


def test_a_client_that_never_reads_is_cut_at_the_bound_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()

        for _ in range(101):
            server.worker.step([1], [COMMA])
        await connection.settle()

        assert connection.was_aborted
        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1))]
        assert server.worker.samples()['tokenfleet:shed_total{reason="slow_client"}'] == "1.0"
        assert connection.num_running == 0
        assert not caplog.records, "nothing went wrong here"

    run(client)


@pytest.mark.parametrize("leaves_after", ["request", "first output", "pause"])
def test_a_client_that_leaves_has_its_stream_aborted(leaves_after: str, caplog: pytest.LogCaptureFixture) -> None:
    async def client() -> None:
        server = Server(request(n=2))
        connection = await server.connect()
        if leaves_after != "request":
            server.worker.step([1, 2], [HELLO, HELLO])
            await connection.settle()
        if leaves_after == "pause":
            connection.pause()

        connection.leave()
        server.worker.step([1, 2], [WORLD, WORLD])  # before the response has taken notice
        await connection.settle()

        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, number)) for number in (1, 2)]
        assert server.worker.client.num_streams == 0
        assert connection.num_running == 0
        assert not caplog.records, "nothing is written to a connection that is gone"

    run(client)


def test_a_client_that_left_before_its_turn_costs_the_engine_nothing() -> None:
    async def client() -> None:
        server = Server()
        connection = Connection(server.app)
        connection.request()
        connection.leave()

        await connection.settle()

        assert server.worker.broker.sent == []
        assert connection.num_running == 0

    run(client)


def test_the_connection_serves_the_next_request_also_one_that_was_waiting() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        connection.request()  # pipelined
        await connection.settle()
        assert len(server.worker.broker.generates) == 1

        server.worker.step([1], [HELLO])
        await connection.settle()
        server.worker.step(finishes=[finish(1)])
        await connection.settle()
        assert len(server.worker.broker.generates) == 2
        connection.received = b""
        server.worker.step([2], [WORLD])
        await connection.settle()
        server.worker.step(finishes=[finish(2)])
        await connection.settle()

        assert contents(connection.body) == [" world"]
        assert not connection.is_closing()

    run(client)


def test_http_1_0_reads_plain_bytes_until_the_connection_closes() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect(version="1.0")

        server.worker.step([1], [HELLO])
        await connection.settle()
        server.worker.step([1], [WORLD], finishes=[finish(1)])
        await connection.settle()

        assert "transfer-encoding" not in connection.head
        assert contents(connection.body) == ["Hello", " world"]
        assert events(connection.body)[-1] == "[DONE]"
        assert connection.is_closing()

    run(client)
