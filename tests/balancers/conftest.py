"""Two fleets for every test here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet

STEP_MS = 10
PRE_STOP_S = 2
FLEET_FLAGS = (
    "--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS),
    "--pre-stop-s", str(PRE_STOP_S), "--drain-timeout-s", "20",
)  # fmt: skip


@pytest.fixture
def fleets(model_folder: Path, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with (
        Fleet(tmp_path / "a.log", str(model_folder), *FLEET_FLAGS) as a,
        Fleet(tmp_path / "b.log", str(model_folder), *FLEET_FLAGS) as b,
    ):
        yield a, b
