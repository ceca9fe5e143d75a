"""Thousands of connections that have had an answer and stay open: what they cost, and whether others are still served.

    python -m loadtests.chaos.idle_connections [--connections 5000] [--requests 200] [--out FILE.md]

Every connection asks for one token, reads its answer and says nothing more. The others' requests, one after the other,
are timed before the connections come, while they are there, and once they are closed.
"""

import argparse
import asyncio
import json
import resource
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.processes import memory
from loadtests.report import machine, quantile_of, table

FLAGS = ("--sim-step-ms", "5", "--log-level", "warning")
AT_ONCE = 100  # connections that are opened together
BODY = {"prompt": "hi", "max_tokens": 1, "ignore_eos": True}
SPARE_FILES = 200  # descriptors of the driver beside the connections


@dataclass(frozen=True)
class Phase:
    """The fleet in one state of its connections."""

    name: str
    num_open: int  # as the fleet counts them
    pss_mb: float
    seen: list[Seen]

    def answer_ms(self, quantile: float) -> float:
        return quantile_of([(one.ended_at_s - one.sent_at_s) * 1e3 for one in self.seen], quantile)


class IdleConnections:
    """Each has had one answer; `num_lost` of them are closed by now, by the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []

    async def open(self, count: int) -> None:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(self._open_one() for _ in range(min(AT_ONCE, count - start))))

    async def _open_one(self) -> None:
        loop, client, payload = asyncio.get_running_loop(), socket.socket(), json.dumps(BODY).encode()
        client.setblocking(False)
        self._sockets.append(client)
        await loop.sock_connect(client, ("127.0.0.1", self._port))
        head = "POST /v1/completions HTTP/1.1\r\nhost: fleet\r\ncontent-type: application/json\r\n"
        await loop.sock_sendall(client, f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
        answer = await loop.sock_recv(client, 65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]

    @property
    def num_lost(self) -> int:
        lost = 0
        for client in self._sockets:
            try:
                lost += not client.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                lost += 1
        return lost

    def close(self) -> None:
        for client in self._sockets:
            client.close()


@dataclass(frozen=True)
class Result:
    phases: tuple[Phase, Phase, Phase]  # before, with them, after
    num_connections: int
    num_lost: int

    @property
    def kb_each(self) -> float:
        before, during, _ = self.phases
        return (during.pss_mb - before.pss_mb) * 1024 / self.num_connections


def measure(num_connections: int, num_requests: int, log_path: Path) -> Result:
    raise_file_limit(num_connections + SPARE_FILES)
    with SimFleet(log_path, *FLAGS) as fleet:
        return asyncio.run(_measure(fleet, num_connections, num_requests))


async def _measure(fleet: SimFleet, num_connections: int, num_requests: int) -> Result:
    idle, passing = IdleConnections(fleet.port), IdleConnections(fleet.port)
    await passing.open(AT_ONCE)  # whatever the first requests load
    passing.close()

    async def phase(name: str) -> Phase:
        seen = [await complete(fleet.port, BODY, Seen()) for _ in range(num_requests)]
        num_open = int(fleet.metric("tokenfleet:open_connections"))
        return Phase(name, num_open, memory(fleet.all_pids).pss_mb, seen)

    before = await phase("before")
    await idle.open(num_connections)
    during = await phase("with them")
    num_lost = idle.num_lost
    idle.close()
    return Result((before, during, await phase("after")), num_connections, num_lost)


def raise_file_limit(num_files: int) -> None:
    """Of this process. Raises ValueError where the hard limit is lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(num_files, 1024), hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=200, help="of the others, in each of the three stretches")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.connections, arguments.requests, Path(folder) / "log")
    text = report(result)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(result: Result) -> str:
    rows = [
        [
            phase.name, str(phase.num_open), f"{phase.pss_mb:.0f}", f"{phase.answer_ms(0.5):.1f}",
            f"{phase.answer_ms(0.99):.1f}", str(sum(one.ending == "finished" for one in phase.seen)),
        ]
        for phase in result.phases
    ]  # fmt: skip
    head = ["", "connections open", "fleet PSS MB", "answer p50 ms", "p99 ms", "answered"]
    return "\n".join(
        [
            "# Idle connections", "",
            f"{result.num_connections} of them, 2 workers; {machine()}.", "",
            table(head, rows),
            f"{result.kb_each:.1f} KB each, the kernel's part not counted; the fleet closed {result.num_lost} of them.", "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
