"""Processes that are there and do nothing, or get no memory: who depends on them is told, and the others are served."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.chaos.client import Seen, complete
from tests.integration.fleet import Fleet

BODY: dict[str, Any] = {"prompt": "hi", "max_tokens": 250, "ignore_eos": True, "stream": True}
SHORT: dict[str, Any] = {**BODY, "max_tokens": 3}


@pytest.fixture(scope="module")
def fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One for all: it heals after each fault but the last."""
    flags = ("--engine", "sim", "--workers", "2", "--sim-step-ms", "10", "--heartbeat-timeout-s", "1")
    with Fleet(
        tmp_path_factory.mktemp("stuck") / "log", str(model_folder), *flags, "--restart-backoff-max-s", "0.1"
    ) as fleet:
        yield fleet


async def under_streams(fleet: Fleet, fault: Any) -> list[Seen]:  # Any: a coroutine function without arguments
    """Twenty streams; the fault is caused when all have begun."""
    seen = [Seen() for _ in range(20)]
    streams = [asyncio.create_task(complete(fleet.port, BODY, one)) for one in seen]
    while not all(one.num_events > 5 for one in seen):
        await asyncio.sleep(0.01)
    await fault()
    await asyncio.gather(*streams)
    return seen


def test_a_stopped_worker_is_replaced_and_the_others_streams_are_whole(fleet: Fleet) -> None:
    before = fleet.pids("worker 0")

    async def stop() -> None:
        os.kill(before[0], signal.SIGSTOP)

    seen = asyncio.run(under_streams(fleet, stop))

    fleet.wait_until(lambda: len(now := fleet.pids("worker 0")) == 1 and now != before and fleet.is_ready(), 10)
    assert {one.ending for one in seen} == {"finished", "broken"}
    assert "process is stuck" in fleet.log
    assert asyncio.run(complete(fleet.port, SHORT, Seen())).ending == "finished"


def test_a_stopped_broker_is_replaced_running_streams_do_not_notice_and_a_new_request_waits_for_it(
    fleet: Fleet,
) -> None:
    late = Seen()

    async def stop() -> None:
        os.kill(fleet.pids("broker")[0], signal.SIGSTOP)
        await complete(fleet.port, SHORT, late)

    seen = asyncio.run(under_streams(fleet, stop))

    assert {one.ending for one in seen} == {"finished"}
    assert late.ending in ("finished", "refused")
    assert "process is stuck" in fleet.log and "child=broker" in fleet.log


def test_a_worker_without_memory_fails_what_asks_for_it_and_the_fleet_serves_on(fleet: Fleet) -> None:
    """The limit of its address space is where it is now: what small objects need is in its arenas, a large body is not."""
    for pid in fleet.pids("worker"):
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used, used))
    large = {**SHORT, "prompt": "word " * 4_000_000}
    assert len(json.dumps(large)) < 32 << 20, "it is not refused for its size"

    seen = asyncio.run(complete(fleet.port, large, Seen()))

    assert seen.ending in ("failed", "broken", "refused")
    fleet.wait_until(lambda: fleet.is_ready(), 10)
    assert {asyncio.run(complete(fleet.port, SHORT, Seen())).ending for _ in range(10)} == {"finished"}


def test_a_broker_that_never_comes_back_ends_the_fleet_but_no_running_stream(fleet: Fleet) -> None:
    late = Seen()

    async def kill_all() -> None:
        asking = None
        while "fleet stops: a process cannot start" not in fleet.log:
            for pid in fleet.pids("broker"):
                os.kill(pid, signal.SIGKILL)
            asking = asking or asyncio.create_task(complete(fleet.port, SHORT, late))
            await asyncio.sleep(0.005)
        assert asking is not None
        await asking

    seen = asyncio.run(under_streams(fleet, kill_all))

    assert {one.ending for one in seen} == {"finished"}
    assert late.ending in ("broken", "refused")
    assert fleet.process.wait(20) == 1
