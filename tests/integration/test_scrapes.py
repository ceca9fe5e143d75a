"""/metrics of a fleet of sixteen workers, asked for twenty times a second as endpoint pickers do."""

from pathlib import Path

import pytest

from loadtests.chaos.fleet import SimFleet
from loadtests.scrapes import FLAGS, Scrapes, measure

NUM_WORKERS, NUM_SCRAPES = 16, 40
BUDGET_MS = 2.0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scrapes]:
    with SimFleet(Path(tmp_path_factory.mktemp("scrapes")) / "log", *FLAGS, workers=NUM_WORKERS) as fleet:
        return measure(fleet, NUM_SCRAPES)


@pytest.mark.parametrize("port", ["ops", "serving"])
def test_a_scrape_costs_less_than_2_ms_of_cpu_and_none_is_late(found: dict[str, Scrapes], port: str) -> None:
    scrapes = found[port]

    assert scrapes.num_bytes > 50_000, "the page of sixteen workers"
    assert scrapes.cpu_ms < BUDGET_MS
    assert sorted(scrapes.answers_ms)[NUM_SCRAPES // 2] < 25, "half of the time to the next one"
