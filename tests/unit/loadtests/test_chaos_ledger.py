"""What the chaos driver makes of requests that broke, and reads off a fleet that should be empty."""

import asyncio
import math
import os
import signal
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.chaos.chaos import HELD, Blow, Chaos, Ledger
from loadtests.chaos.client import Seen
from loadtests.processes import is_stopped, peer_ports


async def held_by(page: str) -> dict[str, float]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + page.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        fleet: Any = SimpleNamespace(ops_port=server.sockets[0].getsockname()[1])  # Any: stands for a fleet
        return await Chaos(fleet, seed=0, seconds=0, concurrency=0)._held()


@pytest.mark.parametrize(("name", "value"), [("share of K/V blocks", 1 / 4096), ("running", 2), ("stream slots", 1)])
def test_one_lost_block_is_seen_and_so_is_everything_else_that_is_held(name: str, value: float) -> None:
    values = {**dict.fromkeys(HELD, 0.0), name: value}
    page = "".join(f'{beginning}model_name="m"}} {values[name]}\n' for name, beginning in HELD.items())

    assert asyncio.run(held_by(page)) == {name: value}


def test_a_fleet_that_tells_nothing_is_not_an_empty_one() -> None:
    held = asyncio.run(held_by(""))

    assert held.keys() == HELD.keys() and all(math.isnan(value) for value in held.values())


@pytest.mark.parametrize(
    ("port", "sent_at_s", "ended_at_s", "is_accounted"),
    [(7, 1.0, 3.0, True), (8, 1.0, 3.0, False), (7, 2.5, 3.0, False), (7, 1.0, 1.5, False)],
    ids=["its worker was struck", "another's was", "the port had another request then", "it broke before"],
)
def test_a_request_may_break_only_with_its_worker(
    port: int, sent_at_s: float, ended_at_s: float, is_accounted: bool
) -> None:
    ledger = Ledger(seed=0, blows=[Blow(2.0, frozenset({7}))])

    ledger.enter("stream", Seen(local_port=port, sent_at_s=sent_at_s, ended_at_s=ended_at_s), {})

    assert ledger.endings == {"broken": 1} and ledger.is_clean == is_accounted


def test_a_stopped_process_is_known_with_the_connections_it_holds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0]:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            try:
                os.kill(pid, signal.SIGSTOP)
                deadline_s = time.monotonic() + 5
                while not is_stopped(pid) and time.monotonic() < deadline_s:
                    time.sleep(0.001)

                assert is_stopped(pid) and peer_ports(pid, port) == {client.getsockname()[1]}
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
