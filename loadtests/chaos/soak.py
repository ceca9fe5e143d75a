"""Mixed load for a long time: whatever the fleet holds must be as much at the end as at the beginning.

    python -m loadtests.chaos.soak [--seconds 1800] [--concurrency 20] [--out FILE.md] [--plot FILE.svg]

Clients come without end: streams, whole answers, several choices, chats, grammars, embeddings, wrong requests, and some
who leave in the middle. Every few seconds memory, descriptors, streams, K/V blocks and rings are looked at. At the end
all clients go, and nothing of theirs may be left. The slope is that of the straight line through the samples behind
the first quarter, in which caches fill.
"""

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.line_chart import Points, document, panel
from loadtests.processes import memory, num_open_files
from loadtests.report import machine, table

FLAGS = ("--sim-step-ms", "10", "--num-gpu-blocks-override", "2048", "--log-level", "warning")
ROLES = ("worker", "engine", "broker", "zygote")
SETTLE_S = 30.0
WARM_SHARE = 0.25  # of the samples, in which caches fill
CHAT = [{"role": "user", "content": "Tell me of the sea."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SCRAPED = {
    "open streams": ("tokenfleet:open_streams{",),
    "open connections": ("tokenfleet:open_connections{",),
    "sequences in the engine": ("vllm:num_requests_running{", "vllm:num_requests_waiting{"),
    "share of K/V blocks in use": ("vllm:kv_cache_usage_perc{",),
    "fill of the rings": ("tokenfleet:ring_occupancy{",),
}
MEMORY = ("fleet PSS MB", *(f"{role} PSS MB" for role in ROLES), "fleet RSS MB")
PANELS = (
    ("PSS, MB", MEMORY[:-1]),
    ("Open descriptors", ("open descriptors",)),
    ("Streams, and sequences in the engine", ("open streams", "sequences in the engine")),
    ("Share of K/V blocks in use", ("share of K/V blocks in use",)),
    ("Fill of the rings, summed over the workers", ("fill of the rings",)),
)


@dataclass
class Result:
    """`samples` by name: (seconds since the start, value)."""

    seconds: float
    concurrency: int
    samples: dict[str, Points] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)
    left: dict[str, float] = field(default_factory=dict)  # what of SCRAPED was not zero when all clients were gone

    def slope_per_h(self, name: str) -> float:
        """Of the least squares line behind the warm-up; 0 for fewer than two samples."""
        points = self.samples[name]
        return slope(points[int(len(points) * WARM_SHARE) :]) * 3600


def slope(points: Points) -> float:
    """Per second."""
    if len(points) < 2:
        return 0.0
    mean_s = sum(at for at, _ in points) / len(points)
    mean = sum(value for _, value in points) / len(points)
    spread = sum((at - mean_s) ** 2 for at, _ in points)
    return sum((at - mean_s) * (value - mean) for at, value in points) / spread


def request_of(draw: random.Random) -> tuple[str, str, dict[str, Any]]:
    """Kind, path and body. Any: the JSON of a request."""
    prompt, num_tokens = f"Tale {draw.randrange(10_000)}", draw.choice((1, 20, 60, 200))
    text: dict[str, Any] = {"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "seed": draw.randrange(100)}
    chat: dict[str, Any] = {"messages": CHAT, "max_tokens": num_tokens, "seed": draw.randrange(100)}
    long = {**text, "prompt": prompt * draw.randrange(10, 300)}
    grammar = {**chat, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}
    kinds = [
        ("stream", "/v1/completions", {**text, "stream": True}),
        ("long", "/v1/completions", {**long, "stream": True}),
        ("whole", "/v1/completions", text),
        ("choices", "/v1/completions", {**text, "n": 3, "stream": True}),
        ("chat", "/v1/chat/completions", {**chat, "stream": True}),
        ("grammar", "/v1/chat/completions", grammar),
        ("embedding", "/v1/embeddings", {"input": prompt}),
        ("wrong", "/v1/completions", {**text, "temperature": -1}),
        ("left", "/v1/completions", {**text, "max_tokens": 1000, "stream": True}),
        ("left", "/v1/chat/completions", {**chat, "max_tokens": 1000}),
    ]
    return draw.choice(kinds)


class Soak:
    def __init__(self, fleet: SimFleet, seconds: float, concurrency: int, interval_s: float) -> None:
        self._fleet, self._concurrency, self._interval_s = fleet, concurrency, interval_s
        self._result = Result(seconds, concurrency)

    async def run(self) -> Result:
        is_over = asyncio.Event()
        clients = [asyncio.create_task(self._client(random.Random(n), is_over)) for n in range(self._concurrency)]
        started_s = time.monotonic()
        while (now_s := time.monotonic() - started_s) < self._result.seconds:
            await asyncio.to_thread(self._sample, now_s)
            await asyncio.sleep(self._interval_s)
        is_over.set()
        await asyncio.gather(*clients)
        await self._settle()
        return self._result

    async def _client(self, draw: random.Random, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            kind, path, body = request_of(draw)
            seen = Seen()
            request = complete(self._fleet.port, body, seen, path=path)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(request, draw.uniform(0.0, 0.6) if kind == "left" else 60.0)
            self._result.endings[f"{kind} {seen.ending}" if kind != "left" else "left"] += 1

    def _sample(self, now_s: float) -> None:
        note = self._result.samples.setdefault
        whole = memory(self._fleet.all_pids)
        note("fleet PSS MB", []).append((now_s, whole.pss_mb))
        note("fleet RSS MB", []).append((now_s, whole.rss_mb))
        for role in ROLES:
            note(f"{role} PSS MB", []).append((now_s, memory(self._fleet.pids(role)).pss_mb))
        note("open descriptors", []).append((now_s, num_open_files(self._fleet.all_pids)))
        for name, prefixes in SCRAPED.items():
            note(name, []).append((now_s, self._fleet.metric(*prefixes)))

    async def _settle(self) -> None:
        """All clients are gone: soon nothing of theirs is left."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            values = {name: self._fleet.metric(*prefixes) for name, prefixes in SCRAPED.items()}
            self._result.left = {name: value for name, value in values.items() if value and name != "open connections"}
            if not self._result.left or time.monotonic() > deadline_s:
                return
            await asyncio.sleep(0.1)


def measure(seconds: float, concurrency: int, log_path: Path, *, interval_s: float = 5.0) -> Result:
    with SimFleet(log_path, *FLAGS) as fleet:
        return asyncio.run(Soak(fleet, seconds, concurrency, interval_s).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.seconds, arguments.concurrency, Path(folder) / "log")
    text = report(result, arguments.plot)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    if arguments.plot:
        arguments.plot.write_text(picture(result))
    raise SystemExit(1 if result.left else 0)


def report(result: Result, plot: Path | None) -> str:
    rows = []
    for name in (*MEMORY, "open descriptors", *SCRAPED):
        points = result.samples[name]
        values = sorted(value for _, value in points[int(len(points) * WARM_SHARE) :])
        rows.append([name, *(f"{value:.3g}" for value in (values[0], values[len(values) // 2], values[-1]))])
        rows[-1].append(f"{result.slope_per_h(name):+.3g}")
    left = ", ".join(f"{name} {value:g}" for name, value in result.left.items()) or "nothing"
    endings = ", ".join(f"{count} {ending}" for ending, count in sorted(result.endings.items()))
    return "\n".join(
        [
            "# Soak", "",
            f"`python -m loadtests.chaos.soak --seconds {result.seconds:g}`: mixed load by {result.concurrency} clients, "
            f"sim engine, 2 workers; {machine()}. "
            f"The table has the samples behind the first {WARM_SHARE:.0%} of the time.", "",
            table(["", "least", "median", "most", "slope per hour"], rows),
            f"{sum(result.endings.values())} requests: {endings}.", "",
            f"Left when all clients were gone: {left}.", "",
            *([f"![over time]({plot.name})", ""] if plot else []),
        ]
    )  # fmt: skip


def picture(result: Result) -> str:
    width, height = 900, 190
    parts = []
    for number, (title, names) in enumerate(PANELS):
        series = [(name, result.samples[name]) for name in names]
        parts += panel(title, series, "short", 8, 40 + number * (height + 8), width, height)
    return document(width + 16, 48 + len(PANELS) * (height + 8), f"Soak: {result.seconds:g} s of mixed load", parts)


if __name__ == "__main__":
    main()
