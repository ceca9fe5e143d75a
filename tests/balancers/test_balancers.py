"""Two real fleets behind real balancers: streams arrive whole, sessions spread, and a drained fleet loses nothing."""

import asyncio
import json
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.balancers.balancers import BINARIES, Balancer, binary_or_none
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.ops, pytest.mark.timeout(240)]

NUM_TOKENS = 40
STEP_MS = 10
PRE_STOP_S = 2
NUM_STREAMS = 40


@pytest.fixture(params=sorted(BINARIES))
def balancer_name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if binary_or_none(name) is None:
        pytest.fail(f"{name} is not there: make balance-test installs it")  # nobody else selects these tests
    return name


def make_fleet(model_folder: Path, log_path: Path) -> Fleet:
    return Fleet(
        log_path, str(model_folder), "--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS),
        "--pre-stop-s", str(PRE_STOP_S), "--drain-timeout-s", "20",
    )  # fmt: skip


@pytest.fixture
def fleets(model_folder: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with make_fleet(model_folder, tmp_path / "a.log") as a, make_fleet(model_folder, tmp_path / "b.log") as b:
        yield a, b


async def stream(client: httpx.AsyncClient, base_url: str, model: str) -> str:
    """ "whole", or what went wrong."""
    body = {
        "model": model, "stream": True, "max_tokens": NUM_TOKENS, "ignore_eos": True,
        "messages": [{"role": "user", "content": "count"}], "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage, lines = None, []
    try:
        async with client.stream("POST", f"{base_url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return f"status {response.status_code}"
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line[6:])
    except httpx.HTTPError as error:
        return f"{type(error).__name__} after {len(lines)} events"
    for line in lines[:-1]:
        usage = json.loads(line).get("usage") or usage
    if not lines or lines[-1] != "[DONE]" or usage is None or usage["completion_tokens"] != NUM_TOKENS:
        return f"cut after {len(lines)} events"
    return "whole"


async def streams(base_url: str, model: str, *, num: int, every_s: float) -> Counter[str]:
    """How `num` streams ended that started `every_s` apart, each over a connection of its own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
        running = []
        for _ in range(num):
            running.append(asyncio.create_task(stream(client, base_url, model)))
            await asyncio.sleep(every_s)
        return Counter(await asyncio.gather(*running))


def model_name(base_url: str) -> str:
    with urllib.request.urlopen(base_url + "/v1/models", timeout=10) as response:
        return str(json.load(response)["data"][0]["id"])


def num_finished(fleet: Fleet) -> int:
    """Requests that this fleet has answered to their end."""
    with urllib.request.urlopen(fleet.ops_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    counts = re.findall(r"^vllm:request_success_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


def test_streams_arrive_whole_and_spread_evenly(
    balancer_name: str, fleets: tuple[Fleet, Fleet], tmp_path: Path
) -> None:
    with Balancer(balancer_name, fleets, tmp_path) as balancer:
        outcomes = asyncio.run(streams(balancer.base_url, model_name(balancer.base_url), num=NUM_STREAMS, every_s=0.02))

    assert outcomes == {"whole": NUM_STREAMS}
    finished = [num_finished(fleet) for fleet in fleets]
    assert sum(finished) == NUM_STREAMS
    assert min(finished) >= NUM_STREAMS * 0.3, finished


def test_a_fleet_that_drains_under_load_loses_nothing(
    balancer_name: str, fleets: tuple[Fleet, Fleet], tmp_path: Path
) -> None:
    async def load_and_drain(base_url: str, model: str) -> Counter[str]:
        load = asyncio.create_task(streams(base_url, model, num=3 * NUM_STREAMS, every_s=0.05))
        await asyncio.sleep(1)
        fleets[0].process.send_signal(signal.SIGTERM)
        return await load

    with Balancer(balancer_name, fleets, tmp_path) as balancer:
        outcomes = asyncio.run(load_and_drain(balancer.base_url, model_name(balancer.base_url)))

    assert outcomes == {"whole": 3 * NUM_STREAMS}
    assert fleets[0].process.wait(30) == 0
    assert num_finished(fleets[1]) >= NUM_STREAMS, "the other fleet took over"
