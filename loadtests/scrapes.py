"""A whole fleet scraped all the time, as an endpoint picker does it: CPU of the processes that answer per scrape, and
how long an answer takes.

    python -m loadtests.scrapes [--workers 16] [--scrapes 200]

On the ops port the supervisor answers; on the serving port the worker that has the connection. Chats and streams have been
served before, so that every series is there; the engine is `sim`. What the same processes use without scrapes is taken off.
`loadtests.micro.scrape` has the rendering alone.
"""

import argparse
import http.client
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.exposition import MAX_AGE_S
from loadtests.background_load import BackgroundLoad
from loadtests.chaos.fleet import SimFleet
from loadtests.processes import cpu_time
from loadtests.report import machine, quantile_of, table

EVERY_S = MAX_AGE_S + 0.005  # twenty times a second some scrapes find the last rendering: here none does
FLAGS = ("--sim-step-ms", "20", "--log-level", "warning")
LOAD_S = 1.0


@dataclass(frozen=True)
class Scrapes:
    """Of one port."""

    num_bytes: int  # of the last
    answers_ms: list[float]
    cpu_s: float  # of the processes that may answer, while they did
    cpu_without_s: float  # of the same processes in as long a time without

    @property
    def cpu_ms(self) -> float:
        """Per scrape."""
        return (self.cpu_s - self.cpu_without_s) / len(self.answers_ms) * 1e3


def measure(fleet: SimFleet, num_scrapes: int) -> dict[str, Scrapes]:
    """By the port's name; both are scraped at once."""
    with BackgroundLoad(fleet.port, num_clients=2):
        time.sleep(LOAD_S)
    pids = {"ops": [fleet.supervisor_pid], "serving": fleet.pids("worker")}
    ports = {"ops": _Port(fleet.ops_port), "serving": _Port(fleet.port)}
    without = _cpu_s(pids, lambda: time.sleep(num_scrapes * EVERY_S))
    spent = _cpu_s(pids, lambda: _scrape(list(ports.values()), num_scrapes))
    return {name: Scrapes(port.num_bytes, port.answers_ms, spent[name], without[name]) for name, port in ports.items()}


def _cpu_s(pids: dict[str, list[int]], work: Callable[[], None]) -> dict[str, float]:
    """Of these processes, meanwhile."""
    before = {name: cpu_time(some) for name, some in pids.items()}
    work()
    return {name: (cpu_time(some) - before[name]).total_s for name, some in pids.items()}


class _Port:
    """One connection to one of them."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.answers_ms: list[float] = []
        self.num_bytes = 0

    def scrape(self) -> None:
        started_s = time.monotonic()
        self._connection.request("GET", "/metrics")
        self.num_bytes = len(self._connection.getresponse().read())
        self.answers_ms.append((time.monotonic() - started_s) * 1e3)

    def close(self) -> None:
        self._connection.close()


def _scrape(ports: list[_Port], num_scrapes: int) -> None:
    next_s = time.monotonic()
    for _ in range(num_scrapes):
        for port in ports:
            port.scrape()
        next_s += EVERY_S
        time.sleep(max(0.0, next_s - time.monotonic()))
    for port in ports:
        port.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--scrapes", type=int, default=200, help="of each port")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        SimFleet(Path(folder) / "log", *FLAGS, workers=arguments.workers) as fleet,
    ):
        found = measure(fleet, arguments.scrapes)
    rows = [
        [port, str(one.num_bytes), f"{one.cpu_ms:.2f}", *(f"{quantile_of(one.answers_ms, q):.1f}" for q in (0.5, 0.99))]
        for port, one in found.items()
    ]
    print(machine())
    print(f"{arguments.workers} workers, {arguments.scrapes} scrapes of each port, one every {EVERY_S * 1e3:.0f} ms")
    print(table(["port", "bytes", "CPU ms a scrape", "answer ms p50", "p99"], rows))


if __name__ == "__main__":
    main()
