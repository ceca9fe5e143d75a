"""Two real fleets behind the real Envoy, which asks a picker of endpoints: what an InferencePool makes of the chart's pods."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from loadtests.peers.server import free_port
from tests.balancers.balancers import Balancer, binary_or_none
from tests.balancers.streams import NUM_TOKENS, model_name, num_finished, streams
from tests.integration.fleet import Fleet

pytest.importorskip("grpc_tools", reason="make picker-test")
from tests.balancers.endpoint_picker import DESTINATION_HEADER, EndpointPicker

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

NUM_STREAMS = 40


@pytest.fixture
def pool(fleets: tuple[Fleet, Fleet], tmp_path: Path) -> Iterator[tuple[EndpointPicker, str]]:
    """The picker, and where clients reach its pool."""
    if binary_or_none("envoy") is None:
        pytest.fail("envoy is not there: make picker-test installs it")
    port = free_port()
    with ExitStack() as stack:
        picker = stack.enter_context(EndpointPicker(fleets, port))
        balancer = stack.enter_context(Balancer("envoy-with-picker", fleets, tmp_path, port))
        yield picker, balancer.base_url


def test_streams_go_to_the_fleet_with_less_to_do(pool: tuple[EndpointPicker, str], fleets: tuple[Fleet, Fleet]) -> None:
    async def load_one_and_ask_the_pool(model: str) -> tuple[Counter[str], Counter[str]]:
        long_ones = streams(fleets[0].base_url, model, num=NUM_STREAMS, every_s=0.02, num_tokens=4 * NUM_TOKENS)
        direct = asyncio.create_task(long_ones)
        await asyncio.sleep(1.0)  # they are in the gauges, and stay there while the pool is asked
        return await streams(pool[1], model, num=NUM_STREAMS // 2, every_s=0.02), await direct

    through_pool, direct = asyncio.run(load_one_and_ask_the_pool(model_name(pool[1])))

    assert (through_pool, direct) == ({"whole": NUM_STREAMS // 2}, {"whole": NUM_STREAMS})
    assert num_finished(fleets[1]) >= NUM_STREAMS // 2 * 0.8
    assert all(endpoint.num_scrapes > 10 for endpoint in pool[0].endpoints)


def test_a_fleet_that_drains_under_load_loses_nothing_and_without_fleets_the_answer_is_503(
    pool: tuple[EndpointPicker, str], fleets: tuple[Fleet, Fleet]
) -> None:
    async def load_and_drain(model: str) -> Counter[str]:
        load = asyncio.create_task(streams(pool[1], model, num=2 * NUM_STREAMS, every_s=0.05))
        await asyncio.sleep(1)
        fleets[0].process.send_signal(signal.SIGTERM)
        return await load

    outcomes = asyncio.run(load_and_drain(model_name(pool[1])))

    assert outcomes == {"whole": 2 * NUM_STREAMS}
    assert fleets[0].process.wait(30) == 0
    finished = num_finished(fleets[1])
    assert NUM_STREAMS <= finished < 2 * NUM_STREAMS, "each had its part, and the other fleet took over"
    fleets[1].stop()
    assert httpx.get(pool[1] + "/v1/models", trust_env=False).status_code == 503
    assert pool[0].num_refused > 0


def test_a_client_cannot_choose_its_endpoint(pool: tuple[EndpointPicker, str]) -> None:
    answer = httpx.get(pool[1] + "/v1/models", headers={DESTINATION_HEADER: "127.0.0.1:1"}, trust_env=False)

    assert answer.status_code == 200
