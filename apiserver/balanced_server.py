"""The worker's server: takes a new connection only while no other worker has fewer.

All workers listen on the same sockets. Left to libuv, whoever wakes first takes everything that waits: of 64 connections
four workers got 42, 16, 6 and 0. With SO_REUSEPORT the kernel deals by hash: no better for the few long connections of
a load balancer, and what waits at a worker dies with it. Here a worker that has more than the least of the others steps
back for a moment, and one that is asked again after that moment accepts whoever comes: a stuck neighbour delays a client
by STEP_BACK_S, it never keeps one out. `python -m loadtests.balance` measures the spread.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

import uvicorn

from apiserver.http_protocol import FleetHttpProtocol
from apiserver.quiet_server import QuietServer
from ipc.fleet_page import Cell, State

logger = logging.getLogger(__name__)

STEP_BACK_S = 0.003
OUT_OF_FDS_S = 0.1
MAX_PER_TURN = 16  # accepted before the loop serves its connections again
FRESH_S = 2.0  # a worker that has not beaten for so long counts for nothing
OUT_OF_FDS = (errno.EMFILE, errno.ENFILE)


class CountedConnections(set[object]):
    """uvicorn's set of connections, whose size the other workers can read."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self._cell = cell

    def add(self, connection: object) -> None:
        super().add(connection)
        self._cell.num_connections = len(self)

    def discard(self, connection: object) -> None:
        super().discard(connection)
        self._cell.num_connections = len(self)


class Acceptor:
    """One listening socket. To uvicorn it is what `loop.create_server` returns."""

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[], asyncio.Protocol],
        connections: CountedConnections,
        others: Sequence[Cell],
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._listener, self._create_protocol, self._ssl_context = listener, create_protocol, ssl_context
        self._connections, self._others = connections, others
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._must_accept = False  # has stepped back already for what waits here
        self._listen()

    def close(self) -> None:
        """Accept nothing more."""
        self._loop.remove_reader(self._listener.fileno())
        if self._timer is not None:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Everything accepted has its protocol."""
        await asyncio.gather(*self._connecting)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._on_clients)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        self._timer = None
        self._listen()
        self._on_clients()  # at once: what comes later is not what it stepped back from

    def _on_clients(self) -> None:
        fewest = min((cell.num_connections for cell in self._others if cell.is_ready(FRESH_S)), default=None)
        for _ in range(MAX_PER_TURN):
            num_own = len(self._connections) + len(self._connecting)
            if fewest is not None and num_own > fewest and not self._must_accept:
                self._must_accept = True
                self._pause(STEP_BACK_S)
                return
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                self._must_accept = False  # another worker took them
                return
            except OSError as error:
                self._on_error(error)
                return
            self._must_accept = False
            task = self._loop.create_task(self._connect(client))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: socket.socket) -> None:
        client.setblocking(False)
        with contextlib.suppress(OSError):  # gone already, or no TLS that is understood here
            await self._loop.connect_accepted_socket(self._create_protocol, client, ssl=self._ssl_context)

    def _on_error(self, error: OSError) -> None:
        if error.errno in OUT_OF_FDS:
            logger.error("no descriptor left for a connection", extra={"limit": "RLIMIT_NOFILE"})
            self._pause(OUT_OF_FDS_S)


class BalancedServer(QuietServer):
    """`cell` is this worker's own on the fleet page, `others` those of the other workers."""

    def __init__(self, config: uvicorn.Config, cell: Cell, others: Sequence[Cell]) -> None:
        super().__init__(config)
        self._cell, self._others = cell, others
        self._connections = CountedConnections(cell)
        self.server_state.connections = self._connections  # type: ignore[assignment]  # of protocols, by uvicorn's types

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's for sockets that are given, but for who accepts. Ready before the first client: who has some is
        watched closely, who only starts may be silent for long."""
        assert sockets, "the fleet's sockets are inherited"
        await self.lifespan.startup()

        def create_protocol() -> asyncio.Protocol:
            protocol: FleetHttpProtocol = self.config.http_protocol_class(  # type: ignore[assignment, call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            protocol.is_leaving = self.should_exit  # accepted just before that
            return protocol

        self._cell.state = State.READY
        self.servers = [
            Acceptor(listener, create_protocol, self._connections, self._others, self.config.ssl)  # type: ignore[misc]
            for listener in sockets
        ]
        self.started = True
