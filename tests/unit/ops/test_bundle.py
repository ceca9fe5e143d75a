"""`tokenfleet bundle` where there is no fleet, or its file is there already."""

import json
from pathlib import Path

import pytest

from ops import bundle, exit_codes


@pytest.fixture(autouse=True)
def no_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_without_a_fleet_its_log_and_this_host_are_still_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("it ended\n")

    members, missing = bundle.collect(None, tmp_path / "log")

    assert members["log.txt"] == "it ended\n" and "msgspec" in members["versions.json"]
    assert missing["metrics.txt"] == "no fleet runs here"
    assert json.loads(members["about.json"])["missing"] == missing


def test_an_existing_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle").write_text("mine")

    code = bundle.run(None, None, tmp_path / "bundle")

    assert code == exit_codes.FAILED and "File exists" in capsys.readouterr().err
    assert (tmp_path / "bundle").read_text() == "mine"


def test_of_a_long_log_the_last_whole_lines_are_taken(tmp_path: Path) -> None:
    lines = [f"line {number} {'x' * 1000}\n" for number in range(2000)]
    (tmp_path / "log").write_text("".join(lines))

    log = bundle.collect(None, tmp_path / "log")[0]["log.txt"]

    assert len(log) <= bundle.LOG_TAIL_BYTES
    assert log.splitlines(keepends=True) == lines[-len(log.splitlines()) :]
