"""One of two fleets behind HAProxy is told to stop under 300 streams, while short requests keep coming: nothing is lost."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.chaos.client import Seen, complete
from tests.balancers.balancers import Balancer, binary_or_none
from tests.balancers.conftest import PRE_STOP_S
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

NUM_STREAMS, NUM_TOKENS, STEP_MS = 300, 100, 80
NUM_COMERS = 8
FLAGS = (
    "--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS),
    "--pre-stop-s", str(PRE_STOP_S), "--drain-timeout-s", "60",
)  # fmt: skip


@pytest.fixture
def fleets(model_folder: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with (
        Fleet(tmp_path / "a.log", str(model_folder), *FLAGS) as a,
        Fleet(tmp_path / "b.log", str(model_folder), *FLAGS) as b,
    ):
        yield a, b


def body_of(number: int, num_tokens: int) -> dict[str, Any]:  # Any: the JSON of a request
    body: dict[str, Any] = {"prompt": f"Story {number}", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    return {**body, "stream_options": {"include_usage": True}}


async def keep_coming(port: int, seen: list[Seen], is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        seen.append(await complete(port, body_of(len(seen), 3), Seen()))


async def drain_under_load(port: int, fleet: Fleet) -> tuple[list[Seen], list[Seen]]:
    """`fleet` has ended when this returns."""
    long, short, is_over = [Seen() for _ in range(NUM_STREAMS)], list[Seen](), asyncio.Event()
    streams = [asyncio.create_task(complete(port, body_of(n, NUM_TOKENS), one)) for n, one in enumerate(long)]
    comers = [asyncio.create_task(keep_coming(port, short, is_over)) for _ in range(NUM_COMERS)]
    while not all(one.num_events > 3 for one in long):
        await asyncio.sleep(0.02)
    fleet.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(fleet.process.wait, 120)
    is_over.set()
    await asyncio.gather(*streams, *comers)
    return long, short


def test_a_fleet_that_is_told_to_stop_behind_haproxy_loses_none_of_its_streams_and_no_request(
    fleets: tuple[Fleet, Fleet], tmp_path: Path
) -> None:
    assert binary_or_none("haproxy") is not None, "make balance-test installs it"
    with Balancer("haproxy", fleets, tmp_path) as balancer:
        long, short = asyncio.run(drain_under_load(balancer.port, fleets[0]))

    assert fleets[0].process.returncode == 0
    assert {one.ending for one in long + short} == {"finished"}
    assert {one.num_tokens for one in long} == {NUM_TOKENS} and {one.num_tokens for one in short} == {3}
    print(f"{len(long)} streams and {len(short)} short requests, all whole, none refused")  # with -s
