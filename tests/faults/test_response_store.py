"""Stored responses outlive the worker that made them."""

import os
import signal
from pathlib import Path

import httpx

from tests.integration.fleet import Fleet


def test_responses_of_a_killed_worker_are_still_found(tmp_path: Path, model_folder: Path) -> None:
    flags = [
        str(model_folder),
        "--engine",
        "sim",
        "--workers",
        "2",
        "--sim-step-ms",
        "2",
        "--restart-backoff-max-s",
        "0.1",
    ]
    with Fleet(tmp_path / "log", *flags) as fleet:
        made = [_created(fleet) for _ in range(6)]
        old = fleet.pids("worker")

        for pid in old:
            os.kill(pid, signal.SIGKILL)
        fleet.wait_until(lambda: len(set(fleet.pids("worker")) - set(old)) == 2 and fleet.is_ready(), 60)
        made += [_created(fleet) for _ in range(6)]

        assert len({response["id"] for response in made}) == 12
        for response in made:
            assert httpx.get(f"{fleet.base_url}/v1/responses/{response['id']}").json() == response


def test_responses_survive_the_replacement_of_every_worker(tmp_path: Path, model_folder: Path) -> None:
    flags = [str(model_folder), "--engine", "sim", "--workers", "2", "--sim-step-ms", "2"]
    with Fleet(tmp_path / "log", *flags) as fleet:
        made = [_created(fleet) for _ in range(6)]

        os.kill(fleet.process.pid, signal.SIGHUP)
        fleet.wait_until(lambda: "reloaded" in fleet.log, 60)

        for response in made:
            assert httpx.get(f"{fleet.base_url}/v1/responses/{response['id']}").json() == response


def _created(fleet: Fleet) -> dict[str, object]:
    """On a connection of its own, so that any worker may have it."""
    response = httpx.post(f"{fleet.base_url}/v1/responses", json={"input": "hi", "max_output_tokens": 4}, timeout=60)
    body: dict[str, object] = response.json()
    return body
