"""What counting costs a worker: the metrics page and the watch for slow requests, with them and without.

    python -m loadtests.micro.accounting [--rounds 20]

Without: every instrument does nothing, and no request is slow enough for `tokenfleet top`. The stages of a request are worked
out for who asks, its log line or `top`, and cost nobody else. Rounds alternate, and the differences of neighbours are what
is reported. A call that does nothing costs something too: such calls are counted in a pass of their own, and their price is
added to the difference.
"""

import argparse
import asyncio
import gc
import logging
import os
import statistics
import timeit
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from apiserver.metrics import WorkerMetrics
from apiserver.services import Services
from apiserver.token_table import TokenTable, build_token_table
from apiserver.worker import YOUNG_OBJECTS
from config.model_folder import ModelFolder, read_model_folder
from config.settings import ModelSettings
from loadtests.embedded_model import embedded_model
from loadtests.micro import drain, request
from loadtests.report import machine, spread, table
from ops import logs

TOKEN_BUDGETS_US, REQUEST_BUDGET_US = {64: 13.0, 256: 12.0}, 150.0
ALLOWED_SHARE = 0.03
STEPS, REQUESTS, PROMPT_WORDS = 100, 640, 20
BUMPS = ("inc", "observe", "observe_many", "set", "flush", "offer", "on_drained", "on_prompt", "on_http", "on_failure")


class NoMetrics:
    """Stands for WorkerMetrics and each of its instruments."""

    floor_s = float("inf")  # of SlowRequests: nothing is slow enough

    def __getattr__(self, name: str) -> Any:  # Any: whatever is asked for
        if name in ("ended", "shed"):
            return lambda _reason: self
        value = _nothing if name in BUMPS else self
        setattr(self, name, value)
        return value


class CountedNoMetrics(NoMetrics):
    num_calls = 0

    def __getattr__(self, name: str) -> Any:  # Any: whatever is asked for
        if name in BUMPS:
            return self._count
        return (lambda _reason: self) if name in ("ended", "shed") else self

    def _count(self, *_: object) -> None:
        self.num_calls += 1


def _nothing(*_: object) -> None:
    pass


@dataclass
class Rounds:
    """CPU microseconds per token or request, round by round."""

    counting: list[float] = field(default_factory=list)
    silent: list[float] = field(default_factory=list)

    @property
    def differences(self) -> list[float]:
        return [on - off for on, off in zip(self.counting, self.silent, strict=True)]


def no_metrics(kind: type[NoMetrics] = NoMetrics) -> WorkerMetrics:
    return cast(WorkerMetrics, kind())


async def tokens(
    model: ModelFolder, token_table: TokenTable, num_streams: int, num_rounds: int
) -> tuple[Rounds, float]:
    """And the calls per token that count something."""
    counting, silent, counted = (
        drain.Bench(model, token_table, num_streams, None, metrics)
        for metrics in (None, no_metrics(), no_metrics(CountedNoMetrics))
    )
    rounds = Rounds()
    for bench in (counting, silent, counted):
        await bench.open()
        bench.step(1)
    for _ in range(num_rounds):
        for bench, values in ((counting, rounds.counting), (silent, rounds.silent)):
            values.append(sum(bench.step(1) for _ in range(STEPS)) / 1e3 / STEPS / num_streams)
    calls = cast(CountedNoMetrics, counted.metrics)
    calls.num_calls = 0
    counted.step(1)
    num_calls = calls.num_calls / num_streams
    for bench in (counting, silent, counted):
        await bench.close()
    return rounds, num_calls


async def requests(model: ModelFolder, num_rounds: int) -> tuple[Rounds, float]:
    """And the calls per request that count something."""
    calls = CountedNoMetrics()
    counting = services(model, None)
    silent = services(model, no_metrics())
    counted = services(model, cast(WorkerMetrics, calls))
    gc.freeze()  # as a worker does
    gc.set_threshold(YOUNG_OBJECTS)
    rounds = Rounds()
    for _ in range(num_rounds):
        rounds.counting.append(await request.measure(counting, REQUESTS, PROMPT_WORDS, None))
        rounds.silent.append(await request.measure(silent, REQUESTS, PROMPT_WORDS, None))
    await request.measure(counted, REQUESTS, PROMPT_WORDS, None)
    num_requests = REQUESTS + 5 * request.NUM_CONNECTIONS  # of which the latter warm up
    return rounds, calls.num_calls / num_requests


def services(model: ModelFolder, metrics: WorkerMetrics | None) -> Services:
    built = request.build_services(model, metrics)
    built.client.start(asyncio.get_running_loop())
    return built


def row(name: str, rounds: Rounds, num_calls: float, call_us: float, budget_us: float) -> list[str]:
    cost_us = statistics.median(rounds.differences) + num_calls * call_us
    return [
        name, spread(rounds.counting, 2), spread(rounds.silent, 2), f"{num_calls:.2f}", f"{cost_us:.2f}",
        f"{budget_us:.0f}", f"{cost_us / budget_us:.1%}", "yes" if cost_us <= ALLOWED_SHARE * budget_us else "no",
    ]  # fmt: skip


async def run(num_rounds: int) -> str:
    model = read_model_folder(embedded_model(), ModelSettings())
    token_table = build_token_table(model)
    assert token_table is not None, "the embedded model is byte-level BPE"
    call_us = min(timeit.repeat(lambda: _nothing(1.0, 1), number=100_000, repeat=5)) * 10
    rows = []
    for num_streams, budget_us in TOKEN_BUDGETS_US.items():
        rounds, num_calls = await tokens(model, token_table, num_streams, num_rounds)
        rows.append(row(f"streamed token, {num_streams} streams", rounds, num_calls, call_us, budget_us))
    rounds, num_calls = await requests(model, num_rounds)
    rows.append(row(f"chat request of {PROMPT_WORDS} words, one token", rounds, num_calls, call_us, REQUEST_BUDGET_US))
    header = ["", "with, us", "without, us", "calls", "cost, us", "budget, us", "share", f"at most {ALLOWED_SHARE:.0%}"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    logs.configure("bench", level="info", log_format="text")
    with Path(os.devnull).open("w") as nowhere, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        logging.getLogger().handlers[0].setStream(nowhere)  # type: ignore[attr-defined]
        text = runner.run(run(arguments.rounds))
    print(machine())
    print(text)


if __name__ == "__main__":
    main()
