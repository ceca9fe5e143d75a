"""The short forms of the chaos, kill and soak drivers: everything accounted for, every byte right, nothing left behind."""

from pathlib import Path

import pytest

from loadtests.chaos import chaos, kills, soak


@pytest.fixture(autouse=True)
def embedded_model(model_folder: Path) -> None:
    """Converted, so that the fleets start at once."""


def test_every_request_under_mixed_faults_is_accounted_for(tmp_path: Path) -> None:
    ledger = chaos.measure(seed=1, seconds=12, concurrency=12, log_path=tmp_path / "log")

    assert ledger.is_clean, ledger
    assert ledger.endings["finished"] > 20 and sum(ledger.faults.values()) >= 3


def test_what_a_killed_worker_did_not_serve_is_whole_and_it_is_back_soon(tmp_path: Path) -> None:
    result = kills.measure_worker_kills(num_streams=40, num_kills=3, log_path=tmp_path / "log", step_ms=15)

    assert 0 < result.count("broken") < 40
    assert result.num_exact == 40 - result.count("broken"), "whoever was not the killed one's"
    assert sorted(result.recoveries_s)[1] < 2.0


def test_mixed_load_with_clients_that_leave_leaves_nothing_behind(tmp_path: Path) -> None:
    result = soak.measure(seconds=4, concurrency=12, log_path=tmp_path / "log", interval_s=1.0)

    assert result.left == {}
    failed = {ending for ending in result.endings if not ending.endswith("finished")}
    assert failed == {"left", "wrong failed"}, result.endings
    assert len(result.endings) == 9, "every kind of request came"
