"""Two real fleets behind real balancers: streams arrive whole, sessions spread, and a drained fleet loses nothing."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.balancers.balancers import BALANCERS, Balancer, binary_or_none
from tests.balancers.conftest import two_fleets
from tests.balancers.streams import model_name, num_finished, streams
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

NUM_STREAMS = 40

Balanced = tuple[Balancer, tuple[Fleet, Fleet]]


@pytest.fixture(scope="module", params=BALANCERS)
def balanced(
    request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balanced]:
    """For both tests of one balancer: the second ends a fleet."""
    name = str(request.param)
    if binary_or_none(name) is None:
        pytest.fail(f"{name} is not there: make balance-test installs it")  # nobody else selects these tests
    folder = tmp_path_factory.mktemp(name)
    with two_fleets(model_folder, folder) as fleets, Balancer(name, fleets, folder) as balancer:
        yield balancer, fleets


def test_streams_arrive_whole_and_spread_evenly(balanced: Balanced) -> None:
    balancer, fleets = balanced

    outcomes = asyncio.run(streams(balancer.base_url, model_name(balancer.base_url), num=NUM_STREAMS, every_s=0.02))

    assert outcomes == {"whole": NUM_STREAMS}
    finished = [num_finished(fleet) for fleet in fleets]
    assert sum(finished) == NUM_STREAMS
    assert min(finished) >= NUM_STREAMS * 0.3, finished


def test_a_fleet_that_drains_under_load_loses_nothing(balanced: Balanced) -> None:
    balancer, fleets = balanced
    num_before = num_finished(fleets[1])

    async def load_and_drain(base_url: str, model: str) -> Counter[str]:
        load = asyncio.create_task(streams(base_url, model, num=3 * NUM_STREAMS, every_s=0.04))
        await asyncio.sleep(1)
        fleets[0].process.send_signal(signal.SIGTERM)
        return await load

    outcomes = asyncio.run(load_and_drain(balancer.base_url, model_name(balancer.base_url)))

    assert outcomes == {"whole": 3 * NUM_STREAMS}
    assert fleets[0].process.wait(30) == 0
    assert num_finished(fleets[1]) - num_before >= NUM_STREAMS, "the other fleet took over"
