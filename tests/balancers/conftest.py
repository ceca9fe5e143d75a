"""Two fleets for every test here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet

STEP_MS = 10
PRE_STOP_S = 2


def make_fleet(model_folder: Path, log_path: Path) -> Fleet:
    return Fleet(
        log_path, str(model_folder), "--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS),
        "--pre-stop-s", str(PRE_STOP_S), "--drain-timeout-s", "20",
    )  # fmt: skip


@pytest.fixture
def fleets(model_folder: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with make_fleet(model_folder, tmp_path / "a.log") as a, make_fleet(model_folder, tmp_path / "b.log") as b:
        yield a, b
