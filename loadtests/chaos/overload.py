"""What happens beyond the capacity: a sim fleet is offered 0.8 times, then ten times what it can do, without waiting.

    python -m loadtests.chaos.overload [--seconds 60] [--out FILE.md]

Offered means: requests are sent at their time, whatever became of those before (an open loop). The queue is as short as it
can be, so what is admitted starts at once and all the rest is told when to come back. Where a loss comes from is told by
the engine: steps that it made in the time it had, and sequences in each. A second part shares a small queue between
keys that ask for very different amounts.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.report import machine, quantile_of, table

MAX_NUM_SEQS = 16
NUM_TOKENS = 50
STEP_MS = 20
CAPACITY_PER_S = MAX_NUM_SEQS / ((NUM_TOKENS + 1) * STEP_MS / 1000)  # one more step to notice the end and refill
RAMP_S = 2.0  # the first batch fills and ends
FLAGS = ("--max-num-seqs", str(MAX_NUM_SEQS), "--sim-step-ms", str(STEP_MS), "--log-level", "warning")


@dataclass(frozen=True)
class Result:
    """One load, as its clients saw it."""

    offered_per_s: float
    seconds: float
    seen: list[Seen]
    steps_per_s: float = 0.0  # of the engine, behind the ramp
    tokens_per_step: float = 0.0

    @property
    def finished(self) -> list[Seen]:
        return [one for one in self.seen if one.ending == "finished"]

    @property
    def finished_per_s(self) -> float:
        """While the load was on and behind the ramp: nothing can end before the first has run its length."""
        started_s, ramp_s = min(one.sent_at_s for one in self.seen), ramp_of(self.seconds)
        ends_s = [one.ended_at_s - started_s for one in self.finished]
        return sum(ramp_s < end_s <= self.seconds for end_s in ends_s) / (self.seconds - ramp_s)

    def ttft_ms(self, quantile: float) -> float:
        return quantile_of([one.ttft_s * 1e3 for one in self.finished], quantile)

    @property
    def endings(self) -> str:
        return ", ".join(f"{count} {ending}" for ending, count in sorted(Counter(s.ending for s in self.seen).items()))


def ramp_of(seconds: float) -> float:
    return min(RAMP_S, seconds / 2)


@dataclass(frozen=True)
class Work:
    """What the engine has done so far."""

    at_s: float
    num_steps: float
    num_tokens: float


def work_of(fleet: SimFleet) -> Work:
    num_steps = fleet.metric("tokenfleet:engine_step_seconds_count")
    return Work(time.monotonic(), num_steps, fleet.metric("tokenfleet:engine_tokens_total"))


async def offer_and_look(fleet: SimFleet, per_s: float, seconds: float) -> Result:
    """As `offer`, with the engine's steps from the end of the ramp to the end of the offers."""
    offering = asyncio.create_task(offer(fleet.port, per_s, seconds))
    await asyncio.sleep(ramp_of(seconds))
    before = await asyncio.to_thread(work_of, fleet)
    await asyncio.sleep(seconds - ramp_of(seconds))
    after = await asyncio.to_thread(work_of, fleet)
    num_steps = after.num_steps - before.num_steps
    return replace(
        await offering,
        steps_per_s=num_steps / (after.at_s - before.at_s),
        tokens_per_step=(after.num_tokens - before.num_tokens) / num_steps,
    )


async def offer(port: int, per_s: float, seconds: float, *, key: str | None = None) -> Result:
    """Streams at a steady rate; returns when the last has ended."""
    loop, tasks, seen = asyncio.get_running_loop(), [], list[Seen]()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    started_s = loop.time()
    for number in itertools.count():
        due_s = started_s + number / per_s
        if due_s - started_s >= seconds:
            break
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        seen.append(Seen())
        tasks.append(asyncio.create_task(complete(port, body_of(number), seen[-1], headers=headers)))
    await asyncio.gather(*tasks)
    return Result(per_s, seconds, seen)


def body_of(number: int) -> dict[str, Any]:  # Any: the JSON of a request
    return {
        "prompt": f"request {number}",
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0,
    }


async def compete(port: int, seconds: float, per_s_of_key: dict[str, float]) -> dict[str, Result]:
    """Several keys at once, each with a rate of its own."""
    results = await asyncio.gather(*(offer(port, per_s, seconds, key=key) for key, per_s in per_s_of_key.items()))
    return dict(zip(per_s_of_key, results, strict=True))


def fairness(shares: list[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def measure_overload(seconds: float, log_path: Path) -> tuple[Result, Result]:
    """At 0.8 times the capacity, then at ten times."""
    with SimFleet(log_path, *FLAGS, "--max-num-queued-reqs", "0") as fleet:
        asyncio.run(offer(fleet.port, 0.5 * CAPACITY_PER_S, 2.0))
        calm = asyncio.run(offer_and_look(fleet, 0.8 * CAPACITY_PER_S, seconds))
        return calm, asyncio.run(offer_and_look(fleet, 10 * CAPACITY_PER_S, seconds))


def measure_fairness(seconds: float, log_path: Path) -> dict[str, Result]:
    """One key asks for eight times the capacity, two for the whole of it, one for a tenth."""
    rates = {"greedy": 8.0, "keen": 1.0, "busy": 1.0, "modest": 0.1}
    keys = [flag for key in rates for flag in ("--api-key", key)]
    with SimFleet(log_path, *FLAGS, "--max-num-queued-reqs", "64", *keys) as fleet:
        return asyncio.run(compete(fleet.port, seconds, {k: rate * CAPACITY_PER_S for k, rate in rates.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, flood = measure_overload(arguments.seconds, Path(folder) / "overload.log")
        shares = measure_fairness(arguments.seconds, Path(folder) / "fairness.log")
    text = report(calm, flood, shares)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def report(calm: Result, flood: Result, shares: dict[str, Result]) -> str:
    rows = [
        [
            f"{result.offered_per_s / CAPACITY_PER_S:.1f}", f"{result.finished_per_s / CAPACITY_PER_S:.3f}",
            f"{result.ttft_ms(0.5):.0f}", f"{result.ttft_ms(0.99):.0f}", f"{result.steps_per_s:.1f}",
            f"{result.tokens_per_step:.1f}", result.endings,
        ]
        for result in (calm, flood)
    ]  # fmt: skip
    head = ["load / capacity", "goodput / capacity", "TTFT p50 ms", "TTFT p99 ms", "steps/s", "tokens/step", "requests"]
    key_rows = [
        [key, f"{r.offered_per_s / CAPACITY_PER_S:.1f}", f"{r.finished_per_s / CAPACITY_PER_S:.3f}", r.endings]
        for key, r in shares.items()
    ]
    wanting = [shares[key].finished_per_s for key in ("greedy", "keen", "busy")]
    waits = [float(one.retry_after or 0) for one in flood.seen if one.ending == "refused"]
    return "\n".join(
        [
            "# Overload", "",
            f"`python -m loadtests.chaos.overload --seconds {calm.seconds:g}`; {machine()}.",
            f"Capacity {CAPACITY_PER_S:.1f} requests a second: {MAX_NUM_SEQS} sequences of {NUM_TOKENS} tokens, "
            f"a step every {STEP_MS} ms.", "",
            f"Goodput and the engine's work are those behind the first {RAMP_S:g} s, in which one batch fills and ends.", "",
            table(head, rows),
            f"Every refusal said when to come back: Retry-After {min(waits, default=0):.0f} to {max(waits, default=0):.0f} s.",
            "", "Four keys at one fleet, a queue of 64:", "",
            table(["key", "asked for / capacity", "got / capacity", "requests"], key_rows),
            f"Jain's fairness index over the keys that want more than they get: {fairness(wanting):.3f}. "
            f"TTFT of the modest key, p50: {statistics.median(o.ttft_s for o in shares['modest'].finished) * 1e3:.0f} ms.",
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
