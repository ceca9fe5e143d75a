"""Far beyond its capacity a fleet does what it can, at once, and tells everybody else when to come back."""

from pathlib import Path

import pytest

from loadtests.chaos.overload import CAPACITY_PER_S, fairness, measure_fairness, measure_overload

SECONDS = 5.0


@pytest.fixture(autouse=True)
def embedded_model(model_folder: Path) -> None:
    """Converted, so that the fleets start at once."""


def test_at_ten_times_its_capacity_a_fleet_works_as_before_and_refuses_the_rest(tmp_path: Path) -> None:
    calm, flood = measure_overload(SECONDS, tmp_path / "log")

    assert {one.ending for one in calm.seen} == {"finished"}
    assert {one.ending for one in flood.seen} == {"finished", "refused"}, "nothing failed, nothing broke"
    refused = [one for one in flood.seen if one.ending == "refused"]
    assert len(refused) > 0.7 * len(flood.seen)
    assert all(one.status == 503 and int(one.retry_after or 0) >= 1 for one in refused)
    assert flood.finished_per_s > 0.85 * CAPACITY_PER_S
    assert flood.ttft_ms(0.5) < 2 * calm.ttft_ms(0.5) + 100


def test_keys_that_want_more_than_there_is_get_equal_shares_and_a_modest_one_all_it_asks_for(tmp_path: Path) -> None:
    shares = measure_fairness(SECONDS + 3, tmp_path / "log")

    got = [shares[key].finished_per_s for key in ("greedy", "keen", "busy")]
    assert fairness(got) > 0.85
    assert {one.ending for one in shares["modest"].seen} == {"finished"}
    refused = [one for one in shares["greedy"].seen if one.ending == "refused"]
    assert refused and {one.status for one in refused} <= {429, 503}
