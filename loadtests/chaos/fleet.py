"""A fleet with the sim engine, for the drivers: started on entering, ended on leaving, with its log kept."""

import json
import sys
import time
import urllib.request
from pathlib import Path

from loadtests.peers.server import Server, free_port
from loadtests.processes import descendants, title

START_TIMEOUT_S = 90.0


class SimFleet:
    """`flags` are those of `tokenfleet serve`."""

    def __init__(self, log_path: Path, *flags: str, workers: int = 2) -> None:
        self.port, self.ops_port = free_port(), free_port()
        self.log_path, self._num_workers = log_path, workers
        self._command = [
            sys.executable, "-m", "ops", "serve", "--engine", "sim", "--workers", str(workers),
            "--port", str(self.port), "--ops-port", str(self.ops_port), *flags,
        ]  # fmt: skip

    def __enter__(self) -> "SimFleet":
        self._server = Server("tokenfleet", self._command, self.port, self.log_path, {})
        self._server.wait_ready(START_TIMEOUT_S)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._num_ready() < self._num_workers:  # the fleet is ready with the first one
            if time.monotonic() > deadline_s:
                self._server.stop()
                raise RuntimeError(f"not all of {self._num_workers} workers came up")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def _num_ready(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/readyz", timeout=10) as response:
            return int(json.load(response)["workers_ready"])

    @property
    def supervisor_pid(self) -> int:
        return self._server.pids[0]

    @property
    def all_pids(self) -> list[int]:
        return self._server.pids

    def pids(self, role: str) -> list[int]:
        """By title: "worker", "worker 1", "engine", "broker"."""
        found = []
        for pid in descendants(self.supervisor_pid):
            try:
                found.append((title(pid), pid))
            except OSError:
                continue  # gone meanwhile
        return [pid for name, pid in sorted(found) if name.startswith(f"tokenfleet: {role}")]

    def metric(self, *prefixes: str) -> float:
        """Sum of the samples of /metrics whose line begins with one of these. Raises OSError while nobody answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefixes))
