"""Waiting threads sleep early, unless the operator has decided otherwise."""

import os
import subprocess
import sys

import pytest

from engine_core.threads import SPIN_COUNT, yield_early


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back whatever a test does
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return monkeypatch


def test_the_spin_count_is_set() -> None:
    yield_early()

    assert os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNT)


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_the_operator_has_set_stays(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)

    yield_early()

    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT") in (None, "7")


def test_the_engine_applies_it_before_torch_is_imported() -> None:
    """libgomp reads its environment when it is loaded, and never again."""
    program = "import sys; import engine_core.process; print('torch' in sys.modules)"

    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert output.strip() == "False"
