"""A vLLM that is ours, with a script in its place: it ends with all it has started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine_core.vllm import server as server_module
from engine_core.vllm.link import EngineGone
from engine_core.vllm.server import HeadlessServer
from ops.supervisor import STOP_GRACE_S, VLLM_STOP_GRACE_S
from tests.integration.fleet import environment

STARTER = """
import signal, sys
from engine_core.vllm.server import HeadlessServer
server = HeadlessServer(sys.argv[1], "MODEL", 29550, ())
signal.pause()
"""


def written(folder: Path, script: str) -> str:
    """What passes for the interpreter that has vLLM."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


def started(folder: Path, script: str) -> HeadlessServer:
    return HeadlessServer(written(folder, script), "MODEL", 29550, ("--seed", "1"))


def told(path: Path) -> str:
    """What the script has written, once it has."""
    deadline_s = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return path.read_text().strip()


def is_running(pid: int) -> bool:
    """A zombie is not: its new parent looks when it likes."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline_s, "it lives on"
        time.sleep(0.01)


def test_it_is_started_headless_at_the_handshakes_port(tmp_path: Path) -> None:
    server = started(tmp_path, f'echo "$@" > {tmp_path}/told; sleep 100')

    assert told(tmp_path / "told") == (
        "-m vllm.entrypoints.cli.main serve MODEL --headless --data-parallel-address 127.0.0.1 "
        "--data-parallel-rpc-port 29550 --seed 1"
    )
    server.stop()


def test_who_does_not_hear_that_it_should_stop_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "STOP_S", 0.3)
    server = started(tmp_path, f"trap '' TERM; sleep 100 & echo $! > {tmp_path}/child; wait; sleep 100")
    child = int(told(tmp_path / "child"))

    started_s = time.monotonic()
    server.stop()

    assert 0.3 <= time.monotonic() - started_s < 5
    wait_until_gone(child)


def test_killing_waits_for_nothing(tmp_path: Path) -> None:
    server = started(tmp_path, f"trap '' TERM; sleep 100 & echo $! > {tmp_path}/child; wait; sleep 100")
    child = int(told(tmp_path / "child"))

    started_s = time.monotonic()
    server.kill()

    assert time.monotonic() - started_s < 1
    wait_until_gone(child)


def test_the_children_of_one_that_has_ended_are_killed_too(tmp_path: Path) -> None:
    server = started(tmp_path, f"sleep 100 & echo $! > {tmp_path}/child; exit 7")
    child = int(told(tmp_path / "child"))
    deadline_s = time.monotonic() + 10
    with pytest.raises(EngineGone, match="code 7"):
        while time.monotonic() < deadline_s:
            server.check()
    assert is_running(child)

    server.kill()
    server.stop()  # as at the end of everything

    wait_until_gone(child)


def test_it_hears_when_its_starter_dies(tmp_path: Path) -> None:
    """Killed, so that nothing was said."""
    hears = f"trap 'echo heard > {tmp_path}/heard; exit' TERM"
    python = written(tmp_path, f"{hears}; echo > {tmp_path}/pid; while :; do sleep 0.1; done")
    starter = subprocess.Popen([sys.executable, "-c", STARTER, python], env=environment())
    told(tmp_path / "pid")

    starter.kill()
    starter.wait()

    assert told(tmp_path / "heard") == "heard"


def test_the_supervisor_waits_longer_than_the_stop_may_take() -> None:
    assert VLLM_STOP_GRACE_S > server_module.STOP_S > STOP_GRACE_S
