"""Engines and workers are killed under open streams, again and again; every stream is compared with an undisturbed run.

    python -m loadtests.chaos.kills [--streams 200] [--kills 20] [--worker-streams 1000] [--worker-kills 50] [--out FILE.md]

First `kill -9` of the engine: every stream must finish with exactly the text it would have had; the pause is the longest
gap between two events of a stream. Then `kill -9` of one of two workers: exactly the streams it had break, the others must
have exactly their text; the time is from the kill until another process serves in its place.
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.report import machine, quantile_of, table

STEP_MS = 20
WORKER_STEP_MS = 80  # of 1000 streams: this client reads 20 000 events a second, not more
WORKER_TOKENS = 150
GAUGE_S = 0.5  # between two looks of a worker at its own streams
FLAGS = ("--max-num-seqs", "1024", "--restart-backoff-max-s", "0.1", "--log-level", "warning")
EVENTS_BETWEEN_KILLS = 15


@dataclass(frozen=True)
class EngineKills:
    """What became of the streams of a fleet whose engine was killed `num_kills` times."""

    num_kills: int
    seen: list[Seen]
    undisturbed: list[Seen]

    @property
    def num_exact(self) -> int:
        return _num_exact(self.seen, self.undisturbed)


@dataclass(frozen=True)
class WorkerKills:
    """How long each kill was felt, and what became of the streams."""

    recoveries_s: list[float]
    num_streams_of_first: int  # that the first one killed had, by its gauge
    seen: list[Seen]
    undisturbed: list[Seen]

    def count(self, ending: str) -> int:
        return sum(one.ending == ending for one in self.seen)

    @property
    def num_exact(self) -> int:
        return _num_exact(self.seen, self.undisturbed)


def _num_exact(seen: list[Seen], undisturbed: list[Seen]) -> int:
    return sum(one.ending == "finished" and one.text == calm.text for one, calm in zip(seen, undisturbed, strict=True))


def body_of(number: int, num_tokens: int) -> dict[str, Any]:  # Any: the JSON of a request
    return {"prompt": f"Story {number}", "max_tokens": num_tokens, "ignore_eos": True, "stream": True, "temperature": 0}


async def stream_all(port: int, seen: list[Seen], num_tokens: int) -> None:
    await asyncio.gather(*(complete(port, body_of(number, num_tokens), one) for number, one in enumerate(seen)))


async def kill_engines(fleet: SimFleet, seen: list[Seen], num_kills: int) -> None:
    """Each when every stream has moved on since the last one."""
    for kill in range(1, num_kills + 1):
        while not all(one.num_events >= kill * EVENTS_BETWEEN_KILLS for one in seen):
            await asyncio.sleep(0.02)
        os.kill(fleet.pids("engine")[0], signal.SIGKILL)
        await asyncio.sleep(0.05)


def measure_engine_kills(num_streams: int, num_kills: int, log_path: Path) -> EngineKills:
    num_tokens = (num_kills + 1) * EVENTS_BETWEEN_KILLS * 2
    with SimFleet(log_path, *FLAGS, "--sim-step-ms", str(STEP_MS)) as fleet:
        undisturbed = [Seen() for _ in range(num_streams)]
        asyncio.run(stream_all(fleet.port, undisturbed, num_tokens))

        async def disturbed() -> list[Seen]:
            seen = [Seen() for _ in range(num_streams)]
            await asyncio.gather(stream_all(fleet.port, seen, num_tokens), kill_engines(fleet, seen, num_kills))
            return seen

        return EngineKills(num_kills, asyncio.run(disturbed()), undisturbed)


async def kill_workers(fleet: SimFleet, num_kills: int) -> list[float]:
    recoveries_s = []
    for kill in range(num_kills):
        name = f"worker {kill % 2}"
        while len(pids := fleet.pids(name)) != 1:
            await asyncio.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
        killed_s = time.monotonic()
        while not ((now := fleet.pids(name)) and now != pids and await _serves(fleet.ops_port)):
            await asyncio.sleep(0.01)
        recoveries_s.append(time.monotonic() - killed_s)
    return recoveries_s


async def _serves(ops_port: int) -> bool:
    """Whether both workers are ready."""
    reader, writer = await asyncio.open_connection("127.0.0.1", ops_port)
    writer.write(b"GET /readyz HTTP/1.1\r\nhost: fleet\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return b'"workers_ready":2' in answer


def measure_worker_kills(
    num_streams: int, num_kills: int, log_path: Path, *, step_ms: float = WORKER_STEP_MS
) -> WorkerKills:
    with SimFleet(log_path, *FLAGS, "--sim-step-ms", str(step_ms)) as fleet:

        async def run() -> WorkerKills:
            undisturbed = [Seen() for _ in range(num_streams)]
            await stream_all(fleet.port, undisturbed, WORKER_TOKENS)
            seen = [Seen() for _ in range(num_streams)]
            streams = asyncio.create_task(stream_all(fleet.port, seen, WORKER_TOKENS))
            while not all(one.num_events > 10 for one in seen):
                await asyncio.sleep(0.02)
            await asyncio.sleep(2 * GAUGE_S)
            num_of_first = int(fleet.metric('tokenfleet:open_streams{worker="0"'))
            first = await kill_workers(fleet, 1)
            await streams
            recoveries_s = [*first, *await kill_workers(fleet, num_kills - 1)]
            return WorkerKills(recoveries_s, num_of_first, seen, undisturbed)

        return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--worker-streams", type=int, default=1000)
    parser.add_argument("--worker-kills", type=int, default=50)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = measure_engine_kills(arguments.streams, arguments.kills, Path(folder) / "engine.log")
        worker = measure_worker_kills(arguments.worker_streams, arguments.worker_kills, Path(folder) / "worker.log")
    text = report(engine, worker)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(engine: EngineKills, worker: WorkerKills) -> str:
    gaps = [one.longest_gap_s for one in engine.seen]
    calm = [one.longest_gap_s for one in engine.undisturbed]
    rows = [
        [
            f"engine, {engine.num_kills} times under {len(engine.seen)} streams",
            f"{engine.num_exact} of {len(engine.seen)} finished with exactly their text",
            f"longest pause of a stream: p50 {quantile_of(gaps, 0.5):.2f} s, p99 {quantile_of(gaps, 0.99):.2f} s "
            f"(undisturbed {quantile_of(calm, 0.5):.2f} s)",
        ],
        [
            f"one of two workers under {len(worker.seen)} streams, then {len(worker.recoveries_s) - 1} times more",
            f"{worker.num_streams_of_first} were its own; {worker.count('broken')} broken, {worker.num_exact} finished with "
            f"exactly their text, {worker.count('failed')} failed otherwise",
            f"back after: p50 {quantile_of(worker.recoveries_s, 0.5):.2f} s, "
            f"p99 {quantile_of(worker.recoveries_s, 0.99):.2f} s",
        ],
    ]  # fmt: skip
    return f"# Kills\n\n{machine()}, a step every {STEP_MS} ms, and {WORKER_STEP_MS} ms for the workers.\n\n" + table(
        ["killed", "streams", "time"], rows
    )


if __name__ == "__main__":
    main()
