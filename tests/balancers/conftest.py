"""Two fleets for every test here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet

STEP_MS = 10
PRE_STOP_S = 2
FLEET_FLAGS = (
    "--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS),
    "--pre-stop-s", str(PRE_STOP_S), "--drain-timeout-s", "20",
)  # fmt: skip


@contextmanager
def two_fleets(model_folder: Path, folder: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with (
        Fleet(folder / "a.log", str(model_folder), *FLEET_FLAGS) as a,
        Fleet(folder / "b.log", str(model_folder), *FLEET_FLAGS) as b,
    ):
        yield a, b


@pytest.fixture
def fleets(model_folder: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with two_fleets(model_folder, tmp_path) as fleets:
        yield fleets
