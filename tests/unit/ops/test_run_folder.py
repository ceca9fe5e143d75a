import subprocess
import sys
from pathlib import Path

import pytest

from ops.run_folder import Manifest, RingEntry, RunFolder, running_fleets

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_running_fleet_is_found_by_its_manifest_and_gone_once_removed() -> None:
    manifest = Manifest(123, "ipc:///tap", (RingEntry(0, 1, 7),))
    folder = RunFolder()
    folder.store(manifest)

    assert running_fleets() == [manifest]

    folder.remove()
    assert running_fleets() == [] and not folder.path.exists()


def test_only_its_user_may_enter() -> None:
    folder = RunFolder()

    assert folder.path.stat().st_mode & 0o777 == 0o700

    folder.remove()


def test_the_folder_of_a_killed_supervisor_is_swept_by_the_next_one(runtime_dir: Path) -> None:
    code = (
        "import os, signal; from ops.run_folder import RunFolder; f = RunFolder(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    [left] = runtime_dir.iterdir()

    living = RunFolder()
    another = RunFolder()

    assert set(runtime_dir.iterdir()) == {living.path, another.path} and left not in (living.path, another.path)
    living.remove()
    another.remove()
