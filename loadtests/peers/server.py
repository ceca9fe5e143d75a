"""What every measured server is to the drivers: a command, a port, a process tree."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.processes import descendants, title

MODEL_NAME = "m"  # every server serves its model under this name
ENGINE_TITLES = ("tokenfleet: engine", "vllm_mock_engine")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One running server. Its log goes to `log_path`; `stop` ends exactly the processes it started."""

    def __init__(self, name: str, command: Sequence[str], port: int, log_path: Path, env: Mapping[str, str]) -> None:
        self.name, self.port, self.log_path = name, port, log_path
        self.started_at_s = time.monotonic()
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
            )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """Every process of the server."""
        return descendants(self._process.pid)

    @property
    def beside(self) -> list[int]:
        """Processes that the server does not run itself: a mock engine."""
        return []

    @property
    def front_end_pids(self) -> list[int]:
        """Every process of the server but its engines: those named so in their title."""
        return [pid for pid in self.pids if not any(word in title(pid) for word in ENGINE_TITLES)]

    def wait_ready(self, timeout_s: float, path: str = "/health") -> None:
        """Until `path` answers 200. Raises RuntimeError with the end of the log."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.base_url + path, timeout=2) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not come up:\n{self.log_path.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """SIGTERM, then after 20 s SIGKILL to whatever of its tree still lives."""
        pids = self.pids
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
