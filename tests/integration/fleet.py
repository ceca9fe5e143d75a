"""A real fleet for tests: `python -m ops serve` on free ports, with everything it starts accounted for."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.peers.server import free_port
from loadtests.processes import descendants, title

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


class Fleet:
    """Started on entering, stopped by SIGTERM on leaving, which must succeed and leave no process behind."""

    host = "127.0.0.1"

    def __init__(
        self,
        log_path: Path,
        *flags: str,
        python: str = sys.executable,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """`python` is the interpreter that has the server."""
        self._start_timeout_s = start_timeout_s
        self.log_path = log_path
        self.port, self.ops_port = free_port(), free_port()
        self._command = [
            python, "-m", "ops", "serve", "--port", str(self.port), "--ops-port", str(self.ops_port), *flags,
        ]  # fmt: skip

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def ops_url(self) -> str:
        return f"http://{self.host}:{self.ops_port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> "Fleet":
        self._start()
        try:
            self.wait_until(lambda: self.is_ready() and self._has_all_workers(), self._start_timeout_s)
        except BaseException:
            self.kill()
            raise
        return self

    @contextmanager
    def started(self) -> Iterator[None]:
        """For tests of the start itself: does not wait for readiness, kills what is left at the end."""
        self._start()
        try:
            yield
        finally:
            if self.process.poll() is None:
                self.kill()

    def _start(self) -> None:
        self.log_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:  # a test may write into it too: nobody overwrites anybody
            self.process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=environment())

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"the fleet ended with {self.process.returncode}:\n{self.log[-3000:]}"
        return self.probe("/readyz") == 200

    def _has_all_workers(self) -> bool:
        """One is enough for the fleet to be ready."""
        wanted = int(self._command[self._command.index("--workers") + 1]) if "--workers" in self._command else 1
        with urllib.request.urlopen(self.ops_url + "/readyz", timeout=5) as response:
            return int(json.load(response)["workers_ready"]) >= wanted

    def probe(self, path: str) -> int:
        """Status of a probe on the ops port; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.ops_url + path, timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def pids(self, role: str) -> list[int]:
        """By title: "worker", "worker 1", "engine", "broker", "zygote"."""
        found = [(_title(pid), pid) for pid in descendants(self.process.pid)]
        return [pid for name, pid in sorted(found) if name.startswith(f"tokenfleet: {role}")]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> float:
        """Seconds until the condition held. Fails with the fleet's log when it never does."""
        started_s = time.monotonic()
        while not condition():
            assert time.monotonic() - started_s < timeout_s, f"not within {timeout_s} s:\n{self.log[-3000:]}"
            time.sleep(0.01)
        return time.monotonic() - started_s

    def stop(self) -> None:
        """SIGTERM; asserts exit code 0 and that nothing of it lives on."""
        pids = descendants(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there {STOP_TIMEOUT_S} s after SIGTERM:\n{self.log[-3000:]}") from None
        assert code == 0, f"exit code {code}:\n{self.log[-3000:]}"
        left = [pid for pid in pids if _title(pid)]  # what has ended, and waits for init to notice, has none
        assert not left, f"processes left behind: {[_title(pid) for pid in left]}"

    def kill(self) -> None:
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def _title(pid: int) -> str:
    """Empty for a process that is gone meanwhile."""
    try:
        return title(pid)
    except OSError:
        return ""


def run_to_end(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """`python -m ops ARGUMENTS` for commands that end by themselves."""
    return subprocess.run(
        [sys.executable, "-m", "ops", *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Without settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOKENFLEET_")}


def post_json(url: str, body: object, timeout_s: float = 60.0) -> object:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return json.load(response)
