import asyncio
import socket
from collections.abc import Iterator

import pytest
import uvicorn

from apiserver import balanced_server
from apiserver.balanced_server import Acceptor, BalancedServer, CountedConnections
from apiserver.http_protocol import FleetHttpProtocol
from ipc.fleet_page import FleetPage, State


class Kept(asyncio.Protocol):
    def __init__(self, connections: CountedConnections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)


@pytest.fixture
def page() -> FleetPage:
    """Two workers, both ready."""
    page = FleetPage(FleetPage.create_segment(2, 0).view)
    for cell in page.workers:
        cell.begin_generation(1)
        cell.mark_alive(1)
        cell.state = State.READY
        cell.beat()
    return page


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


async def accepted_after(listener: socket.socket, page: FleetPage, num_clients: int) -> int:
    own, other = page.workers
    connections = CountedConnections(own)
    acceptor = Acceptor(listener, lambda: Kept(connections), connections, [other], None)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(num_clients)]
    await asyncio.sleep(0.3)
    num_accepted = own.num_connections
    acceptor.close()
    await acceptor.wait_closed()
    for client in clients:
        client.close()
    while own.num_connections:
        await asyncio.sleep(0)
    return num_accepted


def test_a_worker_takes_connections_up_to_the_least_of_the_others(
    listener: socket.socket, page: FleetPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balanced_server, "STEP_BACK_S", 60.0)
    page.workers[1].num_connections = 5

    # Six make it one more than the other has; the rest are its neighbour's, who takes none here.
    assert asyncio.run(accepted_after(listener, page, 16)) == 6


def test_a_client_that_nobody_else_takes_waits_a_moment_only(listener: socket.socket, page: FleetPage) -> None:
    page.workers[1].num_connections = 0

    assert asyncio.run(accepted_after(listener, page, 8)) == 8


def test_a_worker_that_is_not_ready_counts_for_nothing(
    listener: socket.socket, page: FleetPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balanced_server, "STEP_BACK_S", 60.0)
    page.workers[1].state = State.DRAINING

    assert asyncio.run(accepted_after(listener, page, 16)) == 16


def test_nobody_is_accepted_once_it_is_closed(listener: socket.socket, page: FleetPage) -> None:
    async def closed_first() -> int:
        connections = CountedConnections(page.workers[0])
        Acceptor(listener, lambda: Kept(connections), connections, [], None).close()
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0.02)
            return page.workers[0].num_connections

    assert asyncio.run(closed_first()) == 0


def test_a_worker_is_ready_before_its_first_client_and_who_comes_while_it_leaves_is_answered_once(
    listener: socket.socket, page: FleetPage
) -> None:
    own = page.workers[0]
    own.state = State.STARTING
    config = uvicorn.Config(lambda: None, http=FleetHttpProtocol, lifespan="off", log_config=None)
    config.load()
    server = BalancedServer(config, own, [])
    server.lifespan = config.lifespan_class(config)

    async def start_and_leave() -> None:
        await server.startup([listener])
        assert own.state == State.READY
        with socket.create_connection(listener.getsockname()):
            server.should_exit = True
            while not server.server_state.connections:
                await asyncio.sleep(0)
            [protocol] = server.server_state.connections
            assert isinstance(protocol, FleetHttpProtocol) and protocol.is_leaving
            protocol.transport.close()
            server.servers[0].close()
            await server.servers[0].wait_closed()

    asyncio.run(start_and_leave())
