"""The engine without a server: nano-vllm's bench workload, one stream alone, and many streams.

    python -m loadtests.gpu.offline [--runs 3] [--attention-backend auto] [--block-size 128] [--timeline]
    python -m loadtests.gpu.offline --penalties 256 --logprobs 1
    python -m loadtests.gpu.offline --streams 1024
    python -m loadtests.gpu.offline --cached 512 [--cached-tokens 10430] [--per-turn 20] [--disable-cascade-attn]

nano-vllm's `bench.py`: 256 requests at once, 100 to 1024 tokens in and out (seed 0), temperature 0.6, end of text ignored,
random weights of the Qwen3-0.6B shape. Other token ids in every run: nothing is served from the prefix cache.
`--penalties` and `--logprobs` of the 256 requests, their first and their last ones, ask for that.
`--streams` and `--cached` are the loads of loadtests.gpu.server: 32 in, 512 out, three times as many requests as streams; and
16 prompts of 10 000 tokens which the prefix cache holds, asked again and again, 16 out, eight times as many requests.
With `--per-turn` requests arrive some at a time, as through a server, and not as many at once as have ended.
`--timeline` runs the work once more and says where the time went, by kind of step: from one launch to the next, of it the
launch itself and waiting for the device.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from config.settings import EngineSettings
from engine_core.plan import Launched, StepPlan, StepResult
from ipc.messages import SamplingParams
from loadtests.gpu.rig import EngineRig

SHAPE = "qwen3-0.6b"
NUM_CACHED = 16
PENALTIES: dict[str, Any] = {  # Any: fields of SamplingParams
    "presence_penalty": 0.5, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "logit_bias": ((17, -5.0), (40, 2.0))
}  # fmt: skip
LOGPROBS: dict[str, Any] = {"num_logprobs": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--attention-backend", default="auto")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--penalties", type=int, default=0, help="requests with all three penalties and a bias")
    parser.add_argument("--logprobs", type=int, default=0, help="requests with five alternatives a token")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--cached", type=int, default=0)
    parser.add_argument("--cached-tokens", type=int, default=10_000)
    parser.add_argument(
        "--per-turn", type=int, default=0, help="requests that arrive in one turn at most; 0: any number"
    )
    parser.add_argument("--disable-cascade-attn", action="store_true")
    parser.add_argument("--timeline", action="store_true", help="where the time of another run goes, by kind of step")
    arguments = parser.parse_args()
    fields: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("attention_backend", "block_size", "disable_cascade_attn")
    }
    num_seqs = arguments.streams or arguments.cached or 256
    settings = EngineSettings(device="cuda", max_num_seqs=num_seqs, max_num_batched_tokens=16384, **fields)
    rig = EngineRig(SHAPE, settings, max_model_len=16384 if arguments.cached else 4096)
    allocated_mib = torch.cuda.memory_allocated() >> 20
    print(f"start {rig.start_s:.1f} s, {allocated_mib} MiB allocated, {rig.runner.num_blocks} blocks")
    if arguments.streams:
        report(
            f"{arguments.streams} streams 32/512", [streams(rig, arguments.streams, n) for n in range(arguments.runs)]
        )
    elif arguments.cached:
        shape = arguments.cached, arguments.cached_tokens, arguments.per_turn
        rates = [cached(rig, *shape) for _ in range(arguments.runs)]
        print(f"{shape[0]} of {shape[1]} cached in / 16 out: {[round(rate) for rate in rates]} req/s", flush=True)
    else:
        special = arguments.penalties, arguments.logprobs
        name = "256 requests" + (f", {special[0]} with penalties, {special[1]} with logprobs" if any(special) else "")
        report(name, [many(rig, run, *special) for run in range(arguments.runs)])
        if not any(special):
            report("one stream 512/512", [one(rig, run) for run in range(arguments.runs)])
    if arguments.timeline and arguments.cached:
        show_timeline(rig, lambda: cached(rig, *shape))
    elif arguments.timeline:
        show_timeline(rig, lambda: many(rig, arguments.runs))


def report(name: str, rates: list[float]) -> None:
    print(f"{name}: {statistics.median(rates):.0f} output tok/s {[round(rate) for rate in rates]}", flush=True)


def many(rig: EngineRig, run: int, num_penalized: int = 0, num_scored: int = 0) -> float:
    """Output tokens per second of the whole workload."""
    source = random.Random(0)
    prompts = [
        [source.randint(0, 10000) + 11000 * run for _ in range(source.randint(100, 1024))] for _ in range(256)
    ]  # fmt: skip
    lengths = [source.randint(100, 1024) for _ in range(256)]
    for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        asked = (PENALTIES if number < num_penalized else {}) | (LOGPROBS if number >= 256 - num_scored else {})
        rig.submit(prompt, SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True, **asked))
    before = rig.num_tokens
    duration_s = rig.run()
    assert rig.num_tokens - before == sum(lengths)
    print(f"  {duration_s:.2f} s for {sum(map(len, prompts))} tokens in and {sum(lengths)} out", flush=True)
    return sum(lengths) / duration_s


def one(rig: EngineRig, run: int) -> float:
    rig.submit([50 + run] * 512, SamplingParams(temperature=0.6, max_tokens=512, ignore_eos=True))
    return 512 / rig.run()


def streams(rig: EngineRig, num_streams: int, run: int) -> float:
    """Output tokens per second."""

    def prompt_of(number: int) -> list[int]:
        return [(run * 31 + number * 7919 + place) % 100_000 for place in range(32)]

    num_requests = 3 * num_streams
    return 512 * num_requests / sustained_s(rig, num_streams, num_requests, prompt_of, max_tokens=512)


def cached(rig: EngineRig, num_streams: int, num_tokens: int, per_turn: int) -> float:
    """Requests per second."""
    source = np.random.default_rng(0)
    prompts = [source.integers(1000, 100_000, num_tokens) for _ in range(NUM_CACHED)]
    for prompt in prompts:
        rig.submit(prompt, SamplingParams(max_tokens=1, ignore_eos=True), is_cached=True)
    rig.run()
    num_requests = 8 * num_streams
    return num_requests / sustained_s(
        rig, num_streams, num_requests, lambda number: prompts[number % NUM_CACHED], max_tokens=16, is_cached=True,
        per_turn=per_turn,
    )  # fmt: skip


def sustained_s(
    rig: EngineRig,
    num_streams: int,
    num_requests: int,
    prompt_of: Callable[[int], ArrayLike],
    *,
    max_tokens: int,
    is_cached: bool = False,
    per_turn: int = 0,
) -> float:
    """Seconds that the requests take while `num_streams` of them are always under way, or arrive, `per_turn` at a time."""
    num_submitted, finished_before, started_s = 0, rig.num_finished, time.perf_counter()
    while rig.num_finished - finished_before < num_requests:
        under_way = num_submitted - (rig.num_finished - finished_before)
        for _ in range(min(num_streams - under_way, num_requests - num_submitted, per_turn or num_streams)):
            sampling = SamplingParams(temperature=1.0, max_tokens=max_tokens, ignore_eos=True)
            rig.submit(prompt_of(num_submitted), sampling, is_cached=is_cached)
            num_submitted += 1
        rig.turn()
    return time.perf_counter() - started_s


@dataclass
class Steps:
    """Of one kind."""

    number: int = 0
    tokens: int = 0
    decodes: int = 0
    seconds: float = 0.0  # from launch to launch
    launch_s: float = 0.0  # of them
    wait_s: float = 0.0  # of them, for the device


@dataclass
class Timed:
    """A pass under way; waiting for it is counted."""

    launched: Launched
    timeline: "Timeline"

    def result(self) -> StepResult:
        started_s = time.perf_counter()
        result = self.launched.result()
        self.timeline.last.wait_s += time.perf_counter() - started_s
        return result


@dataclass
class Timeline:
    kinds: dict[str, Steps] = field(default_factory=lambda: defaultdict(Steps))
    last: Steps = field(default_factory=Steps)
    last_s: float = 0.0

    def note(self, plan: StepPlan, started_s: float, ended_s: float) -> None:
        self.last.seconds += started_s - self.last_s
        first = plan.num_decodes // 32 * 32
        kind = f"decode {first:3} to {first + 31}" if plan.num_decodes == len(plan.rows) else "with prefill"
        self.last, self.last_s = self.kinds[kind], started_s
        self.last.number += 1
        self.last.tokens += plan.num_tokens
        self.last.decodes += plan.num_decodes
        self.last.launch_s += ended_s - started_s


def show_timeline(rig: EngineRig, work: Callable[[], object]) -> None:
    runner, real, timeline = rig.runner, rig.runner.launch, Timeline()

    def launch(plan: StepPlan) -> Timed:
        started_s = time.perf_counter()
        launched = real(plan)
        timeline.note(plan, started_s, time.perf_counter())
        return Timed(launched, timeline)

    runner.launch = launch  # type: ignore[method-assign, assignment]
    timeline.last_s = time.perf_counter()
    work()
    timeline.last.seconds += time.perf_counter() - timeline.last_s
    runner.launch = real  # type: ignore[method-assign]
    for kind, steps in sorted(timeline.kinds.items()):
        number = steps.number
        each, launching, waiting = (1e3 * part / number for part in (steps.seconds, steps.launch_s, steps.wait_s))
        print(
            f"    {kind}: {number} steps of {steps.tokens / number:.0f} tokens, {steps.decodes / number:.0f} of them decodes, "
            f"{steps.seconds:.3f} s, {each:.2f} ms each, {launching:.2f} launching, {waiting:.2f} waiting",
            flush=True,
        )


if __name__ == "__main__":
    main()
