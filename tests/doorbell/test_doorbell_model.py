"""The wake-up protocol, model-checked by SPIN: no lost wake-up, and the check itself can fail."""

import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("doorbell.pml")

needs_spin = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("gcc") is None, reason="needs spin and gcc"
)


def num_errors(model: str, folder: Path) -> int:
    """Errors SPIN finds when it searches every interleaving under weak fairness."""
    (folder / "model.pml").write_text(model)
    for command in (
        ["spin", "-a", "model.pml"],
        ["gcc", "-DNFAIR=3", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    out = subprocess.run(["./pan", "-a", "-f"], cwd=folder, check=True, capture_output=True, text=True).stdout
    return int(out.split("errors: ")[1].split()[0])


@needs_spin
def test_no_wake_up_is_lost(tmp_path: Path) -> None:
    assert num_errors(MODEL.read_text(), tmp_path) == 0


@needs_spin
def test_polling_before_clearing_loses_a_wake_up(tmp_path: Path) -> None:
    clear, poll = "bell = false;      /* (*) clear */", "seen = tail;       /* (*) poll  */"
    swapped = MODEL.read_text().replace(clear, "@").replace(poll, clear).replace("@", poll)

    assert num_errors(swapped, tmp_path) > 0
