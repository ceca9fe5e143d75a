"""What prompts of 100 000 tokens, never seen before, do to the other streams of their worker.

    python -m loadtests.cold_prompts [--seconds 15] [--rounds 3] [--out FILE.md]

One worker, the sim engine with steps of 20 ms and free prefills, 64 streams. Phases without and with cold prompts alternate;
in the latter one client sends them one after the other. Every gap between two events of a stream is taken at the client,
so the client's own pauses and the kernel's count too: the phases without cold prompts show how much that is.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics

from tokenizers import Tokenizer

from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet
from loadtests.peers.server import MODEL_NAME, Server
from loadtests.prompts import long_context_copy
from loadtests.report import machine, spread, table

MAX_MODEL_LEN = 131_072
COLD_TOKENS = 100_000
NUM_STREAMS = 64
STEP_MS = 20.0
SETTLE_S = 1.0
BOUND_MS = 20.0


@dataclass
class Phase:
    """What the clients saw of one stretch of time."""

    gaps_ms: list[float] = field(default_factory=list)
    num_cold: int = 0

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.gaps_ms, n=100)[98]

    @property
    def max_ms(self) -> float:
        return max(self.gaps_ms)


class ColdPrompts:
    """Bodies of chats of COLD_TOKENS each, shuffled word by word: no cache of segments or blocks has seen their order."""

    def __init__(self, model: Path) -> None:
        text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
        self._words = text.split()
        self._source = random.Random(0)
        sample = " ".join(self._source.choices(self._words, k=20_000))
        num_tokens = len(Tokenizer.from_file(str(model / "tokenizer.json")).encode(sample).ids)
        self._words_per_prompt = int(COLD_TOKENS * 20_000 / num_tokens)

    def body(self) -> bytes:
        words = self._source.choices(self._words, k=self._words_per_prompt)
        return _chat_body(" ".join(words), max_tokens=1, is_stream=False)


def gaps_ms(arrivals_s: list[float], start_s: float, end_s: float) -> list[float]:
    """Between the neighbours of `arrivals_s` that both lie in the stretch from `start_s` to `end_s`."""
    inside = [at for at in arrivals_s if start_s <= at <= end_s]
    return [(later - earlier) * 1e3 for earlier, later in pairwise(inside)]


def _chat_body(content: str, *, max_tokens: int, is_stream: bool) -> bytes:
    return json.dumps(
        {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": is_stream,
        }
    ).encode()


async def _post(port: int, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
    )
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {(await reader.read(2000))!r}")
    return reader, writer


async def _stream(port: int, num_tokens: int, arrivals_s: list[float]) -> None:
    """Notes when each event arrives, until it is cancelled or the stream ends."""
    reader, writer = await _post(port, _chat_body("Tell me a story.", max_tokens=num_tokens, is_stream=True))
    try:
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                arrivals_s.append(time.monotonic())
    finally:
        writer.close()


async def _cold(port: int, bodies: list[bytes]) -> int:
    """How many of the prompts were answered."""
    for number, body in enumerate(bodies):
        reader, writer = await _post(port, body)
        answer = await reader.read()
        writer.close()
        num_tokens = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])["usage"]["prompt_tokens"]
        if num_tokens < 0.95 * COLD_TOKENS:
            raise RuntimeError(f"prompt {number} has only {num_tokens} tokens")
        await asyncio.sleep(0.2)  # each meets streams that are in step again
    return len(bodies)


async def _phase(server: Server, seconds: float, bodies: list[bytes]) -> Phase:
    arrivals_s: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
    num_tokens = int((seconds + SETTLE_S) * 1e3 / STEP_MS * 4)
    streams = [asyncio.create_task(_stream(server.port, num_tokens, arrivals)) for arrivals in arrivals_s]
    await asyncio.sleep(SETTLE_S)
    phase, start_s = Phase(), time.monotonic()
    cold = asyncio.create_task(_cold(server.port, bodies))
    await asyncio.sleep(seconds)
    end_s = time.monotonic()
    phase.num_cold = await cold
    for stream in streams:
        stream.cancel()
    ended = await asyncio.gather(*streams, return_exceptions=True)
    for outcome in ended:
        if isinstance(outcome, Exception):
            raise outcome
    phase.gaps_ms = [gap for arrivals in arrivals_s for gap in gaps_ms(arrivals, start_s, end_s)]
    return phase


def run(seconds: float, rounds: int) -> str:
    model = embedded_model()
    prompts = ColdPrompts(model)
    num_cold = max(1, int(seconds))
    without: list[Phase] = []
    with_cold: list[Phase] = []
    with tempfile.TemporaryDirectory() as folder:
        long_model = long_context_copy(model, Path(folder) / "model", MAX_MODEL_LEN)
        flags = [
            "--engine", "sim", "--max-model-len", str(MAX_MODEL_LEN), "--sim-step-ms", str(STEP_MS),
            "--sim-prefill-us-per-token", "0", "--num-gpu-blocks-override", "100000",
        ]  # fmt: skip
        with tokenfleet.start(Path(folder) / "log", model=str(long_model), flags=flags) as server:
            server.wait_ready(90)
            for _ in range(rounds):
                without.append(asyncio.run(_phase(server, seconds, [])))
                bodies = [prompts.body() for _ in range(num_cold)]
                with_cold.append(asyncio.run(_phase(server, seconds, bodies)))
    rows = [_row("none", without), _row(f"{num_cold} per phase", with_cold)]
    return table(["cold prompts of 100k tokens", "gaps", "p50 ms", "p99 ms", "longest ms"], rows) + _verdict(
        without, with_cold
    )


def _row(name: str, phases: list[Phase]) -> list[str]:
    return [
        name,
        str(sum(len(phase.gaps_ms) for phase in phases)),
        spread([statistics.median(phase.gaps_ms) for phase in phases]),
        spread([phase.p99_ms for phase in phases]),
        spread([phase.max_ms for phase in phases]),
    ]


def _verdict(without: list[Phase], with_cold: list[Phase]) -> str:
    delay_ms = statistics.median(phase.p99_ms for phase in with_cold) - statistics.median(
        phase.p99_ms for phase in without
    )
    held = "held" if delay_ms <= BOUND_MS else "NOT held"
    return f"\nCold prompts add {delay_ms:.1f} ms to the p99 gap; the bound of {BOUND_MS:.0f} ms is {held}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report = f"{machine()}\n\n{run(arguments.seconds, arguments.rounds)}"
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(
            "# Streams beside cold prompts of 100 000 tokens\n\n"
            f"`python -m loadtests.cold_prompts --seconds {arguments.seconds:g} --rounds {arguments.rounds}`: "
            f"{NUM_STREAMS} streams, one worker, sim engine, steps of {STEP_MS:.0f} ms.\n"
            f"Median and range over the phases, which alternate.\n\n{report}"
        )


if __name__ == "__main__":
    main()
