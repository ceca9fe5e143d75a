"""Mixed faults under mixed load, from a seed; every request is accounted for, every byte compared.

    python -m loadtests.chaos.chaos [--seconds 360] [--seeds 5] [--concurrency 40] [--out FILE.md]

Clients come without end: streams, whole answers, several choices, some who leave in the middle. Meanwhile the schedule,
drawn from the seed, kills or stops engines, workers and the broker, and replaces all workers. The ledger knows of
every request how it ended, and for one that finished whether its text is the one its prompt has.
"""

import argparse
import asyncio
import math
import os
import random
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.report import machine, table

FLAGS = (
    "--sim-step-ms", "10", "--restart-backoff-max-s", "0.2", "--heartbeat-timeout-s", "2", "--engine-step-timeout-s", "2",
    "--log-level", "warning",
)  # fmt: skip
NUM_PROMPTS = 40
MAX_TOKENS = (5, 40, 150)
FAULTS = ("kill engine", "stop engine", "kill worker", "stop worker", "kill broker", "reload")
QUIET_S = (1.0, 4.0)  # between two faults


@dataclass
class Ledger:
    """What became of everything."""

    seed: int
    endings: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong_texts: list[str] = field(default_factory=list)
    unaccounted: int = 0  # neither finished nor told why not, though no worker died under it
    left_running: int = 0  # streams the engine still had when all clients were gone

    def enter(self, kind: str, seen: Seen, expected: dict[int, str]) -> None:
        self.endings[kind if kind == "left" else seen.ending] += 1
        if kind != "left" and seen.ending == "finished" and seen.text != expected:
            self.wrong_texts.append(f"{kind}: {seen.text} instead of {expected}")

    @property
    def is_clean(self) -> bool:
        return not (self.wrong_texts or self.unaccounted or self.left_running)


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
                self.ledger.unaccounted += kind != "left"
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
        try:
            os.kill(self._random.choice(pids), signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
        except ProcessLookupError:
            return False
        return True

    async def _settle(self) -> None:
        """All clients are gone: within a few seconds nothing of theirs may be left."""
        for _ in range(300):
            self.ledger.left_running = await self._num_running()
            if not self.ledger.left_running:
                return
            await asyncio.sleep(0.1)

    async def _num_running(self) -> int:
        """Sequences the engine runs or has waiting and, as one more, any K/V block in use; -1 while nobody answers."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._fleet.ops_port)
        except OSError:
            return -1
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: fleet\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{")
        values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(names)]
        return math.ceil(sum(values)) if values else -1  # the usage of K/V is a fraction: one lost block counts too


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
            str(len(ledger.wrong_texts)), str(ledger.unaccounted), str(ledger.left_running),
        ]
        for ledger in ledgers
    ]  # fmt: skip
    head = ["seed", "faults", "requests", "wrong texts", "unaccounted", "left in the engine"]
    return f"# Chaos\n\n{seconds:g} s per seed; {machine()}.\n\n" + table(head, rows)


if __name__ == "__main__":
    main()
