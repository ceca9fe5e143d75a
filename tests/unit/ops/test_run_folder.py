import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import exit_codes
from ops.run_folder import CannotUseFolder, Manifest, RingEntry, RunFolder, running_fleets

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where run folders lie here and in processes started from here. A login's folder is another one, and missing."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "login"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
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


def test_a_login_that_ends_takes_no_fleet_with_it_and_hides_none(temporary: Path) -> None:
    (temporary / "login").mkdir()

    folder = RunFolder()

    assert folder.path.parent == temporary
    folder.remove()


def test_a_cleaner_of_old_files_is_kept_out() -> None:
    folder = RunFolder()
    fd = os.open(folder.path, os.O_RDONLY)

    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what systemd-tmpfiles tries before it goes in

    os.close(fd)
    folder.remove()


def test_another_users_link_to_a_folder_is_no_fleet(temporary: Path) -> None:
    folder = RunFolder()
    folder.store(Manifest(123, "ipc:///tap", ()))
    (temporary / "tokenfleet-run-link").symlink_to(folder.path)

    assert len(running_fleets()) == 1
    folder.remove()


FULL_DISK = """
import errno, os, tempfile
from ops import cli
def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
tempfile.mkdtemp = full
cli.main(["serve", "--engine", "sim", "--workers", "1", "--port", "0", "--ops-port", "0"])
"""


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    ended = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == exit_codes.FAILED
    [line] = ended.stderr.splitlines()
    assert line.startswith("tokenfleet: cannot make a folder") and "No space left" in line


def test_a_folder_that_is_lost_is_one_line() -> None:
    folder = RunFolder()
    folder.remove()

    with pytest.raises(CannotUseFolder, match="No such file"):
        folder.store(Manifest(1, "ipc:///tap", ()))


def test_the_folder_of_a_killed_supervisor_is_swept_by_the_next_one(temporary: Path) -> None:
    code = (
        "import os, signal; from ops.run_folder import RunFolder; f = RunFolder(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    [left] = temporary.iterdir()

    living = RunFolder()
    another = RunFolder()

    assert set(temporary.iterdir()) == {living.path, another.path} and left not in (living.path, another.path)
    living.remove()
    another.remove()
