"""A fleet behind HAProxy is cut off the network, and comes back: nothing that runs on either fleet is lost."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import time
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

DEAD_CLIENT_S = 2
LONG_TOKENS = 400  # of 10 ms: they run when the cable is pulled, and are not at their end when it is back
NUM_LONG, NUM_SHORT = 16, 40
CUT_S = 2.5


@pytest.fixture
def network() -> Iterator[FarNetwork]:
    if os.getuid() != 0 or shutil.which("ip") is None or binary_or_none("haproxy") is None:
        pytest.fail("needs root, iproute2 and haproxy: make partition-test")
    with FarNetwork() as network:
        yield network


def total(fleet: Fleet, metric: str) -> float:
    with urllib.request.urlopen(fleet.ops_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    return sum(map(float, re.findall(rf"^{metric}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)))


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
        restarts = total(far, "tokenfleet:restarts_total")

    assert (long, short, again) == ({"whole": NUM_LONG}, {"whole": NUM_SHORT}, {"whole": NUM_SHORT})
    assert num_without_far >= NUM_SHORT / 2, "the other fleet did not take over"
    assert num_far >= NUM_LONG / 2, "nothing ran where the cable was pulled"
    assert num_far_again >= NUM_SHORT / 4, "the fleet that came back gets nothing to do"
    assert restarts == 0


def test_a_client_that_is_gone_without_a_word_is_given_up(
    network: FarNetwork, model_folder: Path, tmp_path: Path
) -> None:
    """Half-open connections: one waits for a whole answer, one reads a stream, one says nothing."""
    flags = ("--dead-client-timeout-s", str(DEAD_CLIENT_S), "--engine", "sim", "--workers", "1", "--sim-step-ms", "10")
    far = FarFleet(network, tmp_path / "far.log", str(model_folder), *flags)
    with far, contextlib.ExitStack() as clients:
        for is_stream in (True, False, None):
            client = clients.enter_context(socket.create_connection((far.host, far.port), timeout=10))
            if is_stream is not None:
                body = {"prompt": "hi", "max_tokens": 1800, "ignore_eos": True, "stream": is_stream}
                client.sendall(request_of(json.dumps(body).encode()))
        far.wait_until(lambda: total(far, "vllm:num_requests_running") == 2, 10)
        far.wait_until(lambda: total(far, "tokenfleet:open_connections") >= 3, 10)

        network.cut()
        time.sleep(2.5 * DEAD_CLIENT_S)
        network.connect()
        far.wait_until(lambda: far.probe("/livez") == 200, 10)
        num_running = total(far, "vllm:num_requests_running")
        far.wait_until(lambda: total(far, "tokenfleet:open_connections") == 0, 5)

    assert num_running == 0, "18 s of tokens were not made for nobody"


def request_of(body: bytes) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return (head % len(body)).encode() + body
