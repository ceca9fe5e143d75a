"""The fleet's folder for Unix sockets: made by the supervisor, readable by its user alone, removed at the end.

It lies where every process of the host's user finds it, and nobody removes it while the fleet runs: not in
$XDG_RUNTIME_DIR, which ends with the user's last login. A supervisor that was killed leaves its folder behind; the next
one sweeps it away. Whose supervisor lives is told by a lock on the folder that the kernel drops with the process, not by
a pid that somebody else may have by now. The lock also keeps systemd-tmpfiles out, which clears old files away
(tmpfiles.d(5), "Age").
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from config.shown import ShownSetting

_PREFIX = "tokenfleet-run-"
_MANIFEST = "fleet.json"


class RingEntry(Struct, frozen=True):
    engine: int
    slot: int
    fd: int  # number in the supervisor


class Manifest(Struct, frozen=True):
    """What an observer of this fleet needs (`tokenfleet wiretap`, `top`, `bundle`)."""

    supervisor_pid: int
    tap_endpoint: str
    rings: tuple[RingEntry, ...]
    ops_url: str = ""
    settings: tuple[ShownSetting, ...] = ()  # those it runs with, since the last reload
    secret_digests: tuple[str, ...] = ()  # SHA-256 in hex of the secrets among them


class CannotUseFolder(Exception):
    """One line for the operator."""


class RunFolder:
    def __init__(self) -> None:
        """Sweep what dead supervisors left, then make a folder of one's own. Raises CannotUseFolder."""
        try:
            for path, is_alive in _folders():
                if not is_alive:
                    shutil.rmtree(path, ignore_errors=True)
            self._make()
        except OSError as error:
            raise CannotUseFolder(f"cannot make a folder for the fleet's sockets: {error}") from None

    def _make(self) -> None:
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))  # under this name nobody looks at it before it is locked
        self._lock_fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = new.rename(new.with_name(new.name.removeprefix(".")))

    def endpoint(self, name: str) -> str:
        return f"ipc://{self.path / name}"

    def store(self, manifest: Manifest) -> None:
        """Whoever reads meanwhile finds the old one or the new one, whole. Raises CannotUseFolder."""
        new = self.path / f".{_MANIFEST}"
        try:
            new.write_bytes(msgspec.json.encode(manifest))
            new.rename(self.path / _MANIFEST)
        except OSError as error:
            raise CannotUseFolder(f"cannot write to the fleet's folder: {error}") from None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def running_fleets() -> list[Manifest]:
    """Of this user, on this host."""
    return [
        msgspec.json.decode((path / _MANIFEST).read_bytes(), type=Manifest)
        for path, is_alive in _folders()
        if is_alive and (path / _MANIFEST).is_file()
    ]


class WhichFleet(Exception):
    """None runs here, or more than one and nobody said which."""


def the_fleet(pid: int | None) -> Manifest:
    """The one of this supervisor, or the only one there is. Raises WhichFleet."""
    fleets = [fleet for fleet in running_fleets() if pid is None or fleet.supervisor_pid == pid]
    return _only(fleets, "--pid", [str(fleet.supervisor_pid) for fleet in fleets])


def the_ops_url() -> str:
    """Of the only fleet there is. Raises WhichFleet."""
    fleets = running_fleets()
    return _only(fleets, "--url", [fleet.ops_url for fleet in fleets]).ops_url


def _only(fleets: list[Manifest], flag: str, names: list[str]) -> Manifest:
    if len(fleets) == 1:
        return fleets[0]
    several = f"several fleets run here, name one with {flag}: {', '.join(names)}"
    raise WhichFleet(several if fleets else "no such fleet runs here")


def _folders() -> Iterator[tuple[Path, bool]]:
    """Every run folder of this user, and whether its supervisor lives."""
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # no folder, not ours, or just removed
            continue
        try:
            if os.fstat(fd).st_uid != os.getuid():
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path, False
        except BlockingIOError:
            yield path, True
        finally:
            os.close(fd)
