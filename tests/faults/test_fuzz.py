"""The short form of `make fuzz`: spoiled requests break nothing and leave nothing behind."""

import asyncio
import random
from pathlib import Path

import pytest

from loadtests.chaos.fleet import SimFleet
from loadtests.fuzz.fuzz import FLAGS, crashes, fuzz
from loadtests.fuzz.spoiled import FIELDS, VALID, mutated

NUM_REQUESTS = 1500


def test_spoiled_requests_leave_the_fleet_as_it_was(tmp_path: Path) -> None:
    log = tmp_path / "fleet.log"
    with SimFleet(log, *FLAGS) as fleet:
        report = asyncio.run(fuzz(fleet, NUM_REQUESTS, seed=7))

    assert report.faults + crashes(log) == []
    assert report.statuses.total() == NUM_REQUESTS
    assert min(report.statuses[200], report.statuses[400]) > NUM_REQUESTS // 10, "most requests are not mere noise"


def test_every_body_the_server_takes_is_spoiled() -> None:
    """A route that is missing here needs a valid request in loadtests.fuzz.spoiled."""
    assert {request.path for request in VALID if request.content is not None} == set(FIELDS)


def test_the_driver_sees_a_crash_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "fleet.log"
    log.write_text("2026-01-01 error   worker 0: request crashed request_id=1\n")

    assert len(crashes(log)) == 1


@pytest.mark.parametrize("number", range(5))
def test_a_seed_gives_the_same_requests_again(number: int) -> None:
    assert mutated(random.Random(number)).encode() == mutated(random.Random(number)).encode()
