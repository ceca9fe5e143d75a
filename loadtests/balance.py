"""How evenly connections spread over the workers, by three ways to accept them.

    python -m loadtests.balance [--workers 4] [--rounds 5] [--out FILE.md]

`shared`: every worker's libuv accepts from one socket, whoever wakes first. `SO_REUSEPORT`: a socket for each worker, the
kernel deals by hash. `balanced`: apiserver.balanced_server, as the fleet does it. Each connection sends a byte and gets one
back again and again, as a keep-alive client would; the spread is that of the connections a worker has when all are open,
max / mean over the workers: 1 is even, and what is above it is the share of a fleet's throughput that stands idle.
"""

import argparse
import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from apiserver.balanced_server import Acceptor, CountedConnections
from ipc.fleet_page import Cell, FleetPage, State
from loadtests.report import machine, spread, table

PATTERNS: dict[str, tuple[int, int]] = {  # how many connections, how many of them opened at once
    "8, one after the other": (8, 1),
    "8 at once": (8, 8),
    "64, one after the other": (64, 1),
    "64 at once": (64, 64),
    "1000 at once": (1000, 1000),
}
PINGS = 5


class Echo(asyncio.Protocol):
    def __init__(self, connections: CountedConnections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # Any: uvloop's are no asyncio.Transport to isinstance
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)


def listener(port: int = 0, *, is_own: bool = False) -> socket.socket:
    made = socket.socket()
    if is_own:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(4096)
    made.setblocking(False)
    return made


Serve = Callable[[socket.socket, CountedConnections, list[Cell]], None]


def serve_plainly(sock: socket.socket, connections: CountedConnections, _others: list[Cell]) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(loop.create_server(lambda: Echo(connections), sock=sock, backlog=4096))
    task.add_done_callback(lambda done: done.result())


def serve_balanced(sock: socket.socket, connections: CountedConnections, others: list[Cell]) -> None:
    Acceptor(sock, lambda: Echo(connections), connections, others, None)


async def work(sock: socket.socket, cell: Cell, others: list[Cell], serve: Serve) -> None:
    serve(sock, CountedConnections(cell), others)
    cell.state = State.READY
    while True:
        cell.beat()
        await asyncio.sleep(0.2)


@contextmanager
def workers(number: int, serve: Serve, *, is_own: bool) -> Iterator[tuple[int, FleetPage]]:
    """Forked processes that serve; the port and their page."""
    page = FleetPage(FleetPage.create_segment(number, 0).view)
    first = listener(is_own=is_own)
    port = first.getsockname()[1]
    pids = []
    for slot, cell in enumerate(page.workers):
        sock = first if slot == 0 or not is_own else listener(port, is_own=True)
        pid = os.fork()
        if pid == 0:
            others = [other for place, other in enumerate(page.workers) if place != slot]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(work(sock, cell, others, serve))
        cell.mark_alive(pid)
        pids.append(pid)
        if sock is not first:
            sock.close()
    first.close()
    try:
        while any(cell.state != State.READY for cell in page.workers):
            time.sleep(0.01)
        yield port, page
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


async def unevenness(port: int, page: FleetPage, number: int, at_once: int) -> float:
    gate = asyncio.Semaphore(at_once)

    async def client() -> asyncio.StreamWriter:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(PINGS):
                writer.write(b".")
                await reader.readexactly(1)
        return writer

    writers = await asyncio.gather(*(client() for _ in range(number)))
    counts = [cell.num_connections for cell in page.workers]
    assert sum(counts) == number, counts
    for writer in writers:
        writer.close()
    while any(cell.num_connections for cell in page.workers):
        await asyncio.sleep(0.01)
    return max(counts) * len(counts) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    columns: dict[str, list[list[float]]] = {}
    for name, serve, is_own in (
        ("shared", serve_plainly, False), ("SO_REUSEPORT", serve_plainly, True), ("balanced", serve_balanced, False)
    ):  # fmt: skip
        columns[name] = [[] for _ in PATTERNS]
        for _ in range(arguments.rounds):
            with workers(arguments.workers, serve, is_own=is_own) as (port, page):
                for values, (number, at_once) in zip(columns[name], PATTERNS.values(), strict=True):
                    values.append(asyncio.run(unevenness(port, page, number, at_once)))
    rows = [[pattern, *(spread(columns[name][place], 2) for name in columns)] for place, pattern in enumerate(PATTERNS)]
    text = (
        f"# Spread of connections over {arguments.workers} workers, max / mean\n\n{machine()}. Median and range of "
        f"{arguments.rounds} rounds. `python -m loadtests.balance`.\n\n" + table(["connections", *columns], rows)
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
