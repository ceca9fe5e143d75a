"""Mixed faults under mixed load, from a seed; every request is accounted for, every byte compared.

    python -m loadtests.chaos.chaos [--seconds 360] [--seeds 5] [--concurrency 40] [--out FILE.md]

Clients come without end: streams, whole answers, several choices, some who leave in the middle. Meanwhile the schedule,
drawn from the seed, kills or stops engines, workers, broker and zygote, and replaces all workers. The ledger knows of
every request how it ended, for one that finished whether its text is the one its prompt has, and for one that broke
whether its connection was held by a worker that was struck meanwhile: any other is unaccounted for. When all clients are
gone nothing of theirs may be left: no sequence, no stream slot, no K/V block, no byte in a ring.
"""

import argparse
import asyncio
import math
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.processes import is_stopped, peer_ports
from loadtests.report import machine, table

FLAGS = (
    "--sim-step-ms", "10", "--restart-backoff-max-s", "0.2", "--heartbeat-timeout-s", "2", "--engine-step-timeout-s", "2",
    "--engine-start-timeout-s", "15",
    "--log-level", "warning",
)  # fmt: skip
NUM_PROMPTS = 40
MAX_TOKENS = (5, 40, 150)
FAULTS = ("kill engine", "stop engine", "kill worker", "stop worker", "kill broker", "kill zygote", "reload")
QUIET_S = (1.0, 4.0)  # between two faults
STOP_TIMEOUT_S = 5.0  # for a process to stop
SETTLE_S = 30.0
HELD = {  # what a fleet without clients has none of, by the beginning of its lines in /metrics
    "running": "vllm:num_requests_running{",
    "waiting": "vllm:num_requests_waiting{",
    "share of K/V blocks": "vllm:kv_cache_usage_perc{",
    "stream slots": "tokenfleet:open_streams{",
    "fill of rings": "tokenfleet:ring_occupancy{",
}


@dataclass(frozen=True)
class Blow:
    """A worker was killed, or stopped for good. `ports` are the clients' of the connections it held."""

    at_s: float
    ports: frozenset[int]

    def hit(self, seen: Seen) -> bool:
        return seen.local_port in self.ports and seen.sent_at_s <= self.at_s <= seen.ended_at_s


@dataclass
class Ledger:
    """What became of everything."""

    seed: int
    endings: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    blows: list[Blow] = field(default_factory=list)
    wrong_texts: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)  # no end within a minute, or broken though its worker was not
    left: dict[str, float] = field(default_factory=dict)  # of HELD, when all clients were gone

    def enter(self, kind: str, seen: Seen, expected: dict[int, str]) -> None:
        self.endings[kind if kind == "left" else seen.ending] += 1
        if kind == "left":
            return
        if seen.ending == "finished" and seen.text != expected:
            self.wrong_texts.append(f"{kind}: {seen.text} instead of {expected}")
        if seen.ending == "broken" and not any(blow.hit(seen) for blow in self.blows):
            self.unaccounted.append(f"{kind}: broken at {seen.ended_at_s:.3f} without cause: {seen}")

    @property
    def is_clean(self) -> bool:
        return not (self.wrong_texts or self.unaccounted or self.left)


def body_of(prompt: int, max_tokens: int, kind: str) -> dict[str, Any]:  # Any: the JSON of a request
    body: dict[str, Any] = {"prompt": f"Tale {prompt}", "max_tokens": max_tokens, "ignore_eos": True, "seed": prompt}
    if kind != "whole":
        body["stream"] = True
    if kind == "choices":
        body["n"] = 2
    return body


class Chaos:
    """One seed: its load, its schedule, its ledger."""

    def __init__(self, fleet: SimFleet, seed: int, seconds: float, concurrency: int) -> None:
        self._fleet, self._seconds, self._concurrency = fleet, seconds, concurrency
        self._random = random.Random(seed)
        self._expected: dict[tuple[int, int, str], dict[int, str]] = {}
        self.ledger = Ledger(seed)

    async def run(self) -> Ledger:
        await self._learn()
        is_over = asyncio.Event()
        clients = [asyncio.create_task(self._client(random.Random(n), is_over)) for n in range(self._concurrency)]
        await self._inject(asyncio.get_running_loop().time() + self._seconds)
        is_over.set()
        await asyncio.gather(*clients)
        await self._settle()
        return self.ledger

    async def _learn(self) -> None:
        """The text of everything that will be asked, undisturbed."""
        for kind in ("stream", "whole", "choices"):
            for max_tokens in MAX_TOKENS:
                seen = [Seen() for _ in range(NUM_PROMPTS)]
                bodies = [body_of(prompt, max_tokens, kind) for prompt in range(NUM_PROMPTS)]
                await asyncio.gather(
                    *(complete(self._fleet.port, body, one) for body, one in zip(bodies, seen, strict=True))
                )
                assert all(one.ending == "finished" for one in seen), "the fleet does not even serve undisturbed"
                for prompt, one in enumerate(seen):
                    self._expected[prompt, max_tokens, kind] = one.text

    async def _client(self, draw: random.Random, is_over: asyncio.Event) -> None:
        """One request after the other; a refusal, as any error, is followed by a short wait."""
        while not is_over.is_set():
            prompt, max_tokens = draw.randrange(NUM_PROMPTS), draw.choice(MAX_TOKENS)
            kind = draw.choice(("stream", "stream", "whole", "choices", "left"))
            seen, request = Seen(), None
            body = body_of(prompt, max_tokens, "stream" if kind == "left" else kind)
            request = asyncio.create_task(complete(self._fleet.port, body, seen))
            done, _ = await asyncio.wait([request], timeout=draw.uniform(0.0, 0.5) if kind == "left" else 60.0)
            if not done:
                request.cancel()
                await asyncio.wait([request])
                if kind != "left":
                    self.ledger.unaccounted.append(f"{kind}: no end within a minute: {seen}")
                    continue
            self.ledger.enter(kind, seen, self._expected.get((prompt, max_tokens, kind), {}))
            if seen.ending != "finished":
                await asyncio.sleep(0.1)

    async def _inject(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(self._random.uniform(*QUIET_S))
            fault = self._random.choice(FAULTS)
            if self._strike(fault):
                self.ledger.faults[fault] += 1

    def _strike(self, fault: str) -> bool:
        """False when there was nobody to hit."""
        if fault == "reload":
            os.kill(self._fleet.supervisor_pid, signal.SIGHUP)
            return True
        verb, role = fault.split()
        pids = self._fleet.pids(role)
        if not pids:
            return False
        pid = self._random.choice(pids)
        try:
            if role == "worker":
                self._stop_worker(pid)
            os.kill(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
        except (ProcessLookupError, FileNotFoundError):
            return False
        return True

    def _stop_worker(self, pid: int) -> None:
        """Before it is killed, too: what stands still holds exactly the connections that will break."""
        os.kill(pid, signal.SIGSTOP)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while not is_stopped(pid) and time.monotonic() < deadline_s:
            time.sleep(0.0005)
        self.ledger.blows.append(Blow(time.monotonic(), frozenset(peer_ports(pid, self._fleet.port))))

    async def _settle(self) -> None:
        """All clients are gone: within a few seconds nothing of theirs may be left."""
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            self.ledger.left = await self._held()
            if not self.ledger.left:
                return
            await asyncio.sleep(0.1)

    async def _held(self) -> dict[str, float]:
        """What of HELD is not zero; what nobody tells counts as held."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._fleet.ops_port)
        except OSError:
            return dict.fromkeys(HELD, math.nan)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: fleet\r\nconnection: close\r\n\r\n")
        lines = (await reader.read()).decode().splitlines()
        writer.close()
        held = {}
        for name, beginning in HELD.items():
            values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(beginning)]
            if sum(values) or not values:
                held[name] = sum(values) if values else math.nan
        return held


def measure(seed: int, seconds: float, concurrency: int, log_path: Path) -> Ledger:
    with SimFleet(log_path, *FLAGS) as fleet:
        return asyncio.run(Chaos(fleet, seed, seconds, concurrency).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=360.0, help="per seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledgers = [
            measure(seed, arguments.seconds, arguments.concurrency, Path(folder) / f"{seed}.log")
            for seed in range(arguments.seeds)
        ]
    text = report(ledgers, arguments.seconds)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    raise SystemExit(0 if all(ledger.is_clean for ledger in ledgers) else 1)


def report(ledgers: list[Ledger], seconds: float) -> str:
    rows = [
        [
            str(ledger.seed), ", ".join(f"{count} {fault}" for fault, count in sorted(ledger.faults.items())),
            ", ".join(f"{count} {ending}" for ending, count in sorted(ledger.endings.items())),
            str(len(ledger.wrong_texts)), str(len(ledger.unaccounted)),
            ", ".join(f"{value:g} {name}" for name, value in ledger.left.items()) or "nothing",
        ]
        for ledger in ledgers
    ]  # fmt: skip
    head = ["seed", "faults", "requests", "wrong texts", "unaccounted", "left in the fleet"]
    text = f"# Chaos\n\n{seconds:g} s per seed; {machine()}.\n\n" + table(head, rows)
    wrong = [f"seed {ledger.seed}: {line}" for ledger in ledgers for line in ledger.unaccounted + ledger.wrong_texts]
    return text + "".join(f"\n- {line[:400]}\n" for line in wrong)


if __name__ == "__main__":
    main()
