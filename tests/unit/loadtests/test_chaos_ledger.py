"""What the chaos driver reads off a fleet that should be empty."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests.chaos.chaos import Chaos

PAGE = (
    'vllm:num_requests_running{{model_name="m"}} {}\n'
    'vllm:num_requests_waiting{{model_name="m"}} {}\n'
    'vllm:kv_cache_usage_perc{{model_name="m"}} {}\n'
)


async def left_by(page: str) -> int:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + page.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        fleet: Any = SimpleNamespace(ops_port=server.sockets[0].getsockname()[1])  # Any: stands for a fleet
        return await Chaos(fleet, seed=0, seconds=0, concurrency=0)._num_running()


@pytest.mark.parametrize(
    ("values", "num_left"), [((0, 0, 0.0), 0), ((0, 0, 0.001), 1), ((2, 1, 0.0), 3), ((1, 0, 0.3), 2)]
)
def test_one_lost_block_counts_as_much_as_a_running_sequence(values: tuple[float, ...], num_left: int) -> None:
    assert asyncio.run(left_by(PAGE.format(*values))) == num_left


def test_a_fleet_that_tells_nothing_is_not_an_empty_one() -> None:
    assert asyncio.run(left_by("")) == -1
