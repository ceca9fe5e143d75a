"""`kill -9` under load: a worker takes only its own streams with it, an engine ends each stream with one error event."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.integration.fleet import Fleet

NUM_STREAMS = 100
NUM_TOKENS = 300


@dataclass
class StreamOutcome:
    """What one client saw of its stream."""

    num_events: int = 0
    num_tokens: int | None = None  # by the usage at the end
    errors: list[str] = field(default_factory=list)
    is_done: bool = False
    is_broken: bool = False


@pytest.fixture(scope="module")
def lasting_fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    flags = ("--engine", "sim", "--workers", "2", "--sim-step-ms", "10", "--no-resume")
    with Fleet(tmp_path_factory.mktemp("kill") / "log", str(model_folder), *flags) as fleet:
        yield fleet


@pytest.fixture
def fleet(lasting_fleet: Fleet) -> Fleet:
    """Healed from the fault before."""
    lasting_fleet.wait_until(lambda: len(lasting_fleet.pids("worker")) == 2 and lasting_fleet.is_ready(), 20)
    return lasting_fleet


async def stream_all(fleet: Fleet, outcomes: list[StreamOutcome], then: "asyncio.Task[None] | None" = None) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=fleet.base_url, limits=limits, timeout=60) as client:
        await asyncio.gather(*(read_stream(client, outcome) for outcome in outcomes))
    if then is not None:
        await then


async def read_stream(client: httpx.AsyncClient, outcome: StreamOutcome) -> None:
    body: dict[str, object] = {
        "prompt": "Tell me a story",
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    body["stream_options"] = {"include_usage": True}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    outcome.is_done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        outcome.errors.append(event["error"]["message"])
                    elif "usage" in event:
                        outcome.num_tokens = event["usage"]["completion_tokens"]
                    else:
                        outcome.num_events += 1
    except httpx.HTTPError:
        outcome.is_broken = True


async def kill_when_streaming(fleet: Fleet, role: str, outcomes: list[StreamOutcome]) -> int:
    """Once every stream has begun; returns the pid."""
    while not all(outcome.num_events > 20 for outcome in outcomes):
        await asyncio.sleep(0.01)
    pid = fleet.pids(role)[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def stream_and_kill(fleet: Fleet, role: str) -> list[StreamOutcome]:
    async def run() -> list[StreamOutcome]:
        outcomes = [StreamOutcome() for _ in range(NUM_STREAMS)]
        await asyncio.gather(stream_all(fleet, outcomes), kill_when_streaming(fleet, role, outcomes))
        return outcomes

    return asyncio.run(run())


def test_killed_worker_is_respawned_within_two_seconds(fleet: Fleet) -> None:
    pid = fleet.pids("worker 0")[0]

    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        pids = fleet.pids("worker 0")
        return bool(pids) and pids[0] != pid and fleet.probe("/readyz") == 200

    assert fleet.wait_until(is_back, timeout_s=5) < 2.0


def test_killed_worker_takes_only_its_own_streams_and_is_back_within_two_seconds(fleet: Fleet) -> None:
    before = fleet.pids("worker")
    assert len(before) == 2

    outcomes = stream_and_kill(fleet, "worker 0")

    broken = [outcome for outcome in outcomes if outcome.is_broken]
    whole = [outcome for outcome in outcomes if not outcome.is_broken]
    assert 0 < len(broken) < NUM_STREAMS
    assert all(outcome.is_done and not outcome.errors and outcome.num_tokens == NUM_TOKENS for outcome in whole)
    fleet.wait_until(lambda: len(fleet.pids("worker")) == 2, 10)
    after = fleet.pids("worker")
    assert before[1] in after and before[0] not in after


def test_killed_engine_ends_each_stream_with_one_error_and_the_next_serves(fleet: Fleet) -> None:
    outcomes = stream_and_kill(fleet, "engine 0")

    assert all(len(outcome.errors) == 1 and not outcome.is_broken for outcome in outcomes)
    assert all("engine" in outcome.errors[0] for outcome in outcomes)
    fleet.wait_until(lambda: fleet.probe("/readyz") == 200, timeout_s=20)
    answer = httpx.post(fleet.base_url + "/v1/completions", json={"prompt": "again", "max_tokens": 3}, timeout=10)
    assert answer.status_code == 200


def test_killed_broker_leaves_running_streams_alone(fleet: Fleet) -> None:
    outcomes = stream_and_kill(fleet, "broker")

    assert all(outcome.is_done and not outcome.errors and not outcome.is_broken for outcome in outcomes)
    assert all(outcome.num_tokens == NUM_TOKENS for outcome in outcomes)
    fleet.wait_until(lambda: fleet.probe("/readyz") == 200, timeout_s=10)
    answer = httpx.post(fleet.base_url + "/v1/completions", json={"prompt": "again", "max_tokens": 3}, timeout=10)
    assert answer.status_code == 200


def test_killed_supervisor_leaves_no_orphans_whatever_they_are_doing(model_folder: Path, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "log", str(model_folder), "--engine", "sim", "--workers", "2")
    with fleet:
        pids = [pid for role in ("worker", "engine", "broker", "zygote") for pid in fleet.pids(role)]
        assert len(pids) == 5
        with httpx.stream(
            "POST", fleet.base_url + "/v1/completions", json={"prompt": "hi", "max_tokens": 1500, "stream": True}
        ) as response:
            next(response.iter_raw())
            os.kill(fleet.pids("engine")[0], signal.SIGSTOP)  # hears nothing milder than SIGKILL

            os.kill(fleet.process.pid, signal.SIGKILL)
            fleet.process.wait()

            fleet.wait_until(lambda: not any(is_running(pid) for pid in pids), timeout_s=5)


def is_running(pid: int) -> bool:
    """A zombie that nobody reaps here is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
