"""`tokenfleet bundle`: one tar.gz for whoever helps with a fleet. What cannot be had is named inside, with the reason.

    about.json     when, of which fleet, what is missing and why
    settings.json  every setting, its value and origin, as the running fleet has them; secrets hidden
    versions.json  tokenfleet, Python, packages, kernel; cores, memory and open files of this host
    metrics.txt    the ops port's page
    probes.json    /livez, /readyz and /startupz
    fleet.json     every process by itself, as the ops port shows it
    top.json       one screen of `tokenfleet top`: rates over a second
    log.txt        the end of the log: of --log, else of the file that the fleet's standard error is

Every member passes ops.redaction, and the archive is readable by its user alone.
"""

import io
import os
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from config.api_keys import KeyFileError
from config.load import DEFAULT_ORIGIN
from ops import exit_codes
from ops.host_facts import host_facts
from ops.redaction import Redactor, digests_of_key_file, digests_of_private_key
from ops.run_folder import Manifest, running_fleets, the_fleet
from ops.top import NoFleet, fetch, screen_of

LOG_TAIL_BYTES = 1024 * 1024
TIMEOUT_S = 5.0
TOP_INTERVAL_S = 1.0
STANDARD_OUTPUT = Path("-")
_FOLDER = "tokenfleet-bundle"


class Missing(Exception):
    """A member cannot be had; the text says why."""


def run(pid: int | None, log: Path | None, out: Path | None) -> int:
    """Write the archive. Raises WhichFleet when several fleets run here, or not the one of this pid."""
    fleet = the_fleet(pid) if pid is not None or running_fleets() else None
    members, missing = collect(fleet, log)
    target = out or Path(f"{_FOLDER}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    archive = packed(members)
    if target == STANDARD_OUTPUT:
        sys.stdout.buffer.write(archive)
    else:
        try:
            _write_private(target, archive)
        except OSError as error:
            print(f"tokenfleet: {target}: {error.strerror}", file=sys.stderr)
            return exit_codes.FAILED
        print(f"{target}: {', '.join(members)}")
    for name, reason in missing.items():
        print(f"tokenfleet: without {name}: {reason}", file=sys.stderr)
    return exit_codes.OK


def collect(fleet: Manifest | None, log: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """The archive's texts by name, and why what is missing is missing. Without a fleet: this host, and the log."""
    missing: dict[str, str] = {}
    redactor = Redactor(_digests(fleet, missing) if fleet else ())
    sources: dict[str, Callable[[], str]] = {
        "settings.json": lambda: _json(_there(fleet).settings),
        "versions.json": lambda: _json(host_facts()),
        "metrics.txt": lambda: _get(fleet, "/metrics")[1],
        "probes.json": lambda: _json({path: _probe(fleet, path) for path in ("/livez", "/readyz", "/startupz")}),
        "fleet.json": lambda: _json(fetch(_there(fleet).ops_url)),
        "top.json": lambda: _top(_there(fleet).ops_url),
        "log.txt": lambda: _log_tail(_log_path(fleet, log)),
    }
    members = {}
    for name, source in sources.items():
        try:
            members[name] = redactor.clean(source())
        except (Missing, NoFleet) as error:
            missing[name] = redactor.clean(str(error))
    about = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "supervisor_pid": fleet.supervisor_pid if fleet else None,
        "ops_url": fleet.ops_url if fleet else None,
        "missing": missing,
    }
    return {"about.json": redactor.clean(_json(about)), **members}, missing


def packed(members: dict[str, str]) -> bytes:
    """A gzipped tar of one folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            content = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _write_private(path: Path, content: bytes) -> None:
    """Nobody else may read it, not even while it is written. Raises OSError, also when the file is there already."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)


def _there(fleet: Manifest | None) -> Manifest:
    if fleet is None:
        raise Missing("no fleet runs here")
    return fleet


def _digests(fleet: Manifest, missing: dict[str, str]) -> set[bytes]:
    """Of all secrets of this fleet that can be known here. A file of them that cannot be read is named."""
    digests = {bytes.fromhex(digest) for digest in fleet.secret_digests}
    given = {setting.name: setting.value for setting in fleet.settings if setting.origin != DEFAULT_ORIGIN}
    for name, digests_in in (("api_key_file", digests_of_key_file), ("ssl_keyfile", digests_of_private_key)):
        if name in given:
            try:
                digests |= digests_in(Path(f"/proc/{fleet.supervisor_pid}/cwd") / given[name])  # relative to its folder
            except (KeyFileError, OSError) as error:
                missing[name] = f"{error}: its secrets are recognised by their looks only"
    return digests


def _get(fleet: Manifest | None, path: str) -> tuple[int, str]:
    """Status and body."""
    url = _there(fleet).ops_url + path
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        raise Missing(f"{url}: {error}") from None


def _probe(fleet: Manifest | None, path: str) -> dict[str, Any]:  # Any: what the probe says
    status, body = _get(fleet, path)
    return {"status": status, "body": msgspec.json.decode(body)}


def _top(ops_url: str) -> str:
    before = fetch(ops_url)
    time.sleep(TOP_INTERVAL_S)
    return _json(screen_of(before, fetch(ops_url)))


def _log_path(fleet: Manifest | None, log: Path | None) -> Path:
    if log is not None:
        return log
    path = Path(
        f"/proc/{_there(fleet).supervisor_pid}/fd/2"
    )  # opened by this name it is found even when it was renamed
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from None
    raise Missing("the fleet does not log into a file: name one with --log")


def _log_tail(path: Path) -> str:
    """Its last whole lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            content = file.read(LOG_TAIL_BYTES)
    except OSError as error:
        raise Missing(f"{path}: {error.strerror}") from None
    if size > LOG_TAIL_BYTES:
        content = content[content.find(b"\n") + 1 :]
    return content.decode(errors="replace")


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"
