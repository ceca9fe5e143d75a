"""A fleet behind HAProxy is cut off the network, and comes back: nothing that runs on either fleet is lost."""

import asyncio
import os
import re
import shutil
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.balancers.balancers import Balancer, binary_or_none
from tests.balancers.conftest import FLEET_FLAGS
from tests.balancers.network import FarFleet, FarNetwork
from tests.balancers.streams import model_name, num_finished, streams
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

LONG_TOKENS = 400  # of 10 ms: they run when the cable is pulled, and are not at their end when it is back
NUM_LONG, NUM_SHORT = 16, 40
CUT_S = 2.5


@pytest.fixture
def network() -> Iterator[FarNetwork]:
    if os.getuid() != 0 or shutil.which("ip") is None or binary_or_none("haproxy") is None:
        pytest.fail("needs root, iproute2 and haproxy: make partition-test")
    with FarNetwork() as network:
        yield network


def num_restarts(fleet: Fleet) -> float:
    with urllib.request.urlopen(fleet.ops_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(map(float, re.findall(r"^tokenfleet:restarts_total\{[^}]*\} (\S+)$", text, re.MULTILINE)))


def test_a_fleet_that_is_cut_off_and_comes_back_loses_no_stream(
    network: FarNetwork, model_folder: Path, tmp_path: Path
) -> None:
    near = Fleet(tmp_path / "near.log", str(model_folder), *FLEET_FLAGS)
    far = FarFleet(network, tmp_path / "far.log", str(model_folder), *FLEET_FLAGS)

    async def load_and_cut(base_url: str, model: str) -> tuple[Counter[str], Counter[str], int]:
        long = asyncio.create_task(streams(base_url, model, num=NUM_LONG, every_s=0.02, num_tokens=LONG_TOKENS))
        await asyncio.sleep(1)
        network.cut()
        short = asyncio.create_task(streams(base_url, model, num=NUM_SHORT, every_s=CUT_S / NUM_SHORT))
        await asyncio.sleep(CUT_S)
        num_without_far = num_finished(near)
        network.connect()
        return await long, await short, num_without_far

    with near, far, Balancer("haproxy", (near, far), tmp_path) as balancer:
        model = model_name(balancer.base_url)
        long, short, num_without_far = asyncio.run(load_and_cut(balancer.base_url, model))
        num_far = num_finished(far)
        again = asyncio.run(streams(balancer.base_url, model, num=NUM_SHORT, every_s=0.05))
        num_far_again = num_finished(far) - num_far
        restarts = num_restarts(far)

    assert (long, short, again) == ({"whole": NUM_LONG}, {"whole": NUM_SHORT}, {"whole": NUM_SHORT})
    assert num_without_far >= NUM_SHORT / 2, "the other fleet did not take over"
    assert num_far >= NUM_LONG / 2, "nothing ran where the cable was pulled"
    assert num_far_again >= NUM_SHORT / 4, "the fleet that came back gets nothing to do"
    assert restarts == 0
