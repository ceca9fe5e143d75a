"""Faults inside a process, injected: a request that breaks its own sampling, a device that is lost, a worker that spins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtests.chaos.client import Seen, complete
from tests.faults.injected.sitecustomize import RAISES_SEED, SPINS_SEED
from tests.integration.fleet import Fleet

STORY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "stream": True, "seed": 7}


@pytest.fixture(autouse=True)
def injection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "injected"))
    monkeypatch.setenv("INJECTED_FAULTS", str(tmp_path))


def test_a_request_that_breaks_its_sampling_fails_alone_and_a_lost_device_is_a_pause(
    model_folder: Path, tmp_path: Path
) -> None:
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


def test_a_worker_that_never_returns_to_its_loop_is_aborted_with_its_traceback_and_replaced(
    model_folder: Path, tmp_path: Path
) -> None:
    flags = ("--engine", "sim", "--workers", "2", "--sim-step-ms", "10", "--heartbeat-timeout-s", "1")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:

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
