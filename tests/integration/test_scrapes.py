"""/metrics of a fleet of sixteen workers, asked for all the time, as endpoint pickers do."""

from pathlib import Path

from loadtests.chaos.fleet import SimFleet
from loadtests.scrapes import FLAGS, measure

NUM_WORKERS, NUM_SCRAPES, MAX_ROUNDS = 16, 40, 3
BUDGET_MS = 2.0


def test_a_scrape_costs_less_than_2_ms_of_cpu_on_either_port_and_is_answered_before_the_next(tmp_path: Path) -> None:
    with SimFleet(tmp_path / "log", *FLAGS, workers=NUM_WORKERS) as fleet:
        for _ in range(MAX_ROUNDS):  # other work on the machine can only make it look dearer
            found = measure(fleet, NUM_SCRAPES)
            if max(scrapes.cpu_ms for scrapes in found.values()) < BUDGET_MS:
                break

    for scrapes in found.values():
        assert scrapes.num_bytes > 50_000, "the page of sixteen workers"
        assert scrapes.cpu_ms < BUDGET_MS
        assert sorted(scrapes.answers_ms)[NUM_SCRAPES // 2] < 25, "half of the time to the next one"
