"""Faults inside a process, injected: a request that breaks its own sampling, a device that is lost, a step that hangs, a
worker that raises again and again, one that spins."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.chaos.client import Seen, complete
from loadtests.processes import descendants
from tests.faults.injected.sitecustomize import RAISES_SEED, SPINS_SEED, STORM_SEED
from tests.integration.fleet import Fleet

STORY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "stream": True, "seed": 7}


INJECTED = str(Path(__file__).parent / "injected")


@dataclass(frozen=True)
class SpoiledFleet:
    fleet: Fleet
    faults: Path  # a file here causes its fault


@pytest.fixture(scope="module")
def spoiled(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpoiledFleet]:
    """With the sim engine; it heals after each fault."""
    folder = tmp_path_factory.mktemp("spoiled")
    flags = ["--engine", "sim", "--workers", "2", "--sim-step-ms", "10", "--heartbeat-timeout-s", "3"]
    flags += ["--engine-step-timeout-s", "3", "--restart-backoff-max-s", "0.1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", INJECTED)
        patch.setenv("INJECTED_FAULTS", str(folder))
        with Fleet(folder / "log", str(model_folder), *flags) as fleet:
            yield SpoiledFleet(fleet, folder)


def test_a_request_that_breaks_its_sampling_fails_alone_and_a_lost_device_is_a_pause(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", INJECTED)
    monkeypatch.setenv("INJECTED_FAULTS", str(tmp_path))
    breaking = {**STORY, "presence_penalty": 0.5, "seed": RAISES_SEED, "temperature": 1}
    stories = [{**STORY, "presence_penalty": 0.5, "temperature": 1}, {**STORY, "temperature": 0}]
    flags = ("--workers", "1", "--dtype", "float32", "--restart-backoff-max-s", "0.1")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:

        async def run(*bodies: dict[str, Any], loses_device: bool = False) -> list[Seen]:
            seen = [Seen() for _ in bodies]
            tasks = [asyncio.create_task(complete(fleet.port, *one)) for one in zip(bodies, seen, strict=True)]
            if loses_device:
                while seen[0].num_events < 8:
                    await asyncio.sleep(0.01)
                (tmp_path / "lost_device").touch()
            await asyncio.gather(*tasks)
            return seen

        beside = asyncio.run(run(*stories, breaking))
        resumed = asyncio.run(run(*stories, loses_device=True))

    assert {one.ending for one in (*beside[:2], *resumed)} == {"finished"}
    assert [one.text for one in beside[:2]] == [one.text for one in resumed]
    assert beside[2].ending == "failed" and "RuntimeError" in beside[2].errors[0]
    assert not (tmp_path / "lost_device").exists(), "the device was lost"
    assert fleet.log.count('process died child="engine 0"') == 1, "once: for the device, not for the request"


def test_a_storm_of_exceptions_fails_its_own_requests_and_nothing_else(spoiled: SpoiledFleet) -> None:
    fleet = spoiled.fleet
    workers = fleet.pids("worker")

    async def run() -> tuple[list[Seen], list[Seen]]:
        others, storm = [Seen() for _ in range(20)], [Seen() for _ in range(300)]
        streams = [asyncio.create_task(complete(fleet.port, {**STORY, "max_tokens": 100}, one)) for one in others]
        bodies = [{**STORY, "seed": STORM_SEED, "stream": number % 2 == 0} for number in range(len(storm))]
        await asyncio.gather(*(complete(fleet.port, body, one) for body, one in zip(bodies, storm, strict=True)))
        await asyncio.gather(*streams)
        return others, storm

    others, storm = asyncio.run(run())

    assert {one.ending for one in others} == {"finished"} and len({one.text[0] for one in others}) == 1
    assert {(one.ending, len(one.errors)) for one in storm} == {("failed", 1)}
    assert fleet.pids("worker") == workers and fleet.is_ready(), "nobody died of it"


def test_an_engine_that_hangs_inside_a_step_is_replaced_and_its_streams_go_on(spoiled: SpoiledFleet) -> None:
    fleet = spoiled.fleet
    body = {**STORY, "max_tokens": 100}

    async def run() -> list[Seen]:
        seen = [Seen() for _ in range(20)]
        streams = [asyncio.create_task(complete(fleet.port, body, one)) for one in seen]
        while not all(one.num_events > 5 for one in seen):
            await asyncio.sleep(0.01)
        (spoiled.faults / "hung_step").touch()
        await asyncio.gather(*streams)
        return seen

    hung = asyncio.run(run())
    again = asyncio.run(complete(fleet.port, body, Seen()))

    assert {one.ending for one in (*hung, again)} == {"finished"} and {one.text[0] for one in hung} == {again.text[0]}
    assert 'process is stuck child="engine 0"' in fleet.log and "launch_or_hang" in fleet.log, (
        "the traceback says where"
    )


def test_a_worker_of_which_the_supervisor_never_heard_leaves_and_another_one_is_forked(spoiled: SpoiledFleet) -> None:
    fleet = spoiled.fleet
    num_processes = len(descendants(fleet.process.pid))
    (spoiled.faults / "killed_between").touch()

    os.kill(fleet.pids("worker 0")[0], signal.SIGKILL)

    fleet.wait_until(lambda: not (spoiled.faults / "killed_between").exists(), 10)
    fleet.wait_until(lambda: len(fleet.pids("worker")) == 2 and fleet.is_ready(), 10)
    assert "no worker was forked" in fleet.log
    fleet.wait_until(lambda: len(descendants(fleet.process.pid)) == num_processes, 10)
    assert asyncio.run(complete(fleet.port, STORY, Seen())).ending == "finished"


def test_a_worker_that_never_returns_to_its_loop_is_aborted_with_its_traceback_and_replaced(
    spoiled: SpoiledFleet,
) -> None:
    fleet = spoiled.fleet

    async def run() -> tuple[list[Seen], Seen]:
        seen, spinning = [Seen() for _ in range(20)], Seen()
        body = {**STORY, "max_tokens": 240}
        others = [asyncio.create_task(complete(fleet.port, body, one)) for one in seen]
        while not all(one.num_events > 5 for one in seen):
            await asyncio.sleep(0.01)
        await complete(fleet.port, {**STORY, "seed": SPINS_SEED}, spinning)
        await asyncio.gather(*others)
        return seen, spinning

    seen, spinning = asyncio.run(run())
    fleet.wait_until(lambda: len(fleet.pids("worker")) == 2 and fleet.is_ready(), 10)
    again = asyncio.run(complete(fleet.port, STORY, Seen()))

    assert spinning.ending == "broken" and again.ending == "finished"
    assert {one.ending for one in seen} == {"finished", "broken"}, "the other worker's are whole"
    assert "process is stuck" in fleet.log and "submit_or_spin" in fleet.log, "the traceback says where"
