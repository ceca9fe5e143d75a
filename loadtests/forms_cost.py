"""What tools, forms and reasoning cost, streamed and by request, beside plain chats of the same server.

    python -m loadtests.forms_cost [--rounds 5] [--out FILE.md]

A fleet of two workers before the engine `sim`; all kinds of request take turns in each round, and ratios are those of one
round. CPU is user + system time from /proc: of every process but the engine, and of the engine, which holds the outputs to
their grammars, apart. A stream has 128 tokens of text, within the arguments of a call or a string of the object where there
is a form; a request has one token, and its form was seen before, as those of one application are.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.peers import tokenfleet
from loadtests.peers.server import MODEL_NAME, Server
from loadtests.processes import cpu_time

STREAM_TOKENS, CONNECTIONS, STREAMS_EACH, REQUESTS_EACH = 128, 32, 4, 32
FLAGS = ("--engine", "sim", "--sim-step-ms", "10", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
OBJECT: dict[str, Any] = {  # Any: JSON, here and below
    "type": "object", "properties": {"text": {"type": "string", "minLength": 3000}}, "required": ["text"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "write", "description": "Writes a text.", "parameters": OBJECT}}
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": NO_THINKING,
    "tools, the model may call": {**NO_THINKING, "tools": [TOOL]},
    "tools, a call is required": {**NO_THINKING, "tools": [TOOL], "tool_choice": "required"},
    "json_schema": {
        **NO_THINKING,
        "response_format": {"type": "json_schema", "json_schema": {"name": "text", "schema": OBJECT}},
    },
    "reasoning": {},
}


@dataclass
class Figures:
    """Microseconds, one value a round."""

    front_end: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)

    def ratios(self, plain: "Figures") -> list[float]:
        return [ours / its for ours, its in zip(self.front_end, plain.front_end, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the report there, too")
    arguments = parser.parse_args()
    tokens = {name: Figures() for name in KINDS}
    requests = {name: Figures() for name in KINDS}
    with (
        tempfile.TemporaryDirectory() as folder,
        tokenfleet.start(Path(folder) / "log", workers=2, flags=FLAGS) as server,
    ):
        server.wait_ready(120)
        for name in KINDS:
            _measure(server, name, STREAM_TOKENS, 1, Figures())  # grammars are compiled, caches filled
        for _ in range(arguments.rounds):
            for name in KINDS:
                _measure(server, name, STREAM_TOKENS, STREAMS_EACH, tokens[name])
                _measure(server, name, 1, REQUESTS_EACH, requests[name])
    text = render(tokens, requests, arguments.rounds)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


def _measure(server: Server, name: str, max_tokens: int, requests_each: int, figures: Figures) -> None:
    """CPU per token of streams, or per request of one token."""
    front_end = server.front_end_pids
    engines = [pid for pid in server.pids if pid not in front_end]
    before = cpu_time(front_end).total_s, cpu_time(engines).total_s
    asyncio.run(_ask(server.port, name, max_tokens, requests_each))
    after = cpu_time(front_end).total_s, cpu_time(engines).total_s
    divisor = CONNECTIONS * requests_each * max_tokens
    figures.front_end.append((after[0] - before[0]) / divisor * 1e6)
    figures.engine.append((after[1] - before[1]) / divisor * 1e6)


async def _ask(port: int, name: str, max_tokens: int, requests_each: int) -> None:
    """Raises RuntimeError where a stream is not whole."""
    body = json.dumps(
        {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": "Write about the sea, and about ships."}],
            "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
            **KINDS[name],
        }
    ).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def one_after_another() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        for _ in range(requests_each):
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
            if b'"completion_tokens":%d' % max_tokens not in answer or b" 200 " not in answer[:20]:
                raise RuntimeError(f"{name}: {answer[:200]!r} … {answer[-400:]!r}")
        writer.close()

    await asyncio.gather(*(one_after_another() for _ in range(CONNECTIONS)))


def render(tokens: dict[str, Figures], requests: dict[str, Figures], rounds: int) -> str:
    return "\n".join(
        [
            "# What tools and forms cost", "",
            f"`python -m loadtests.forms_cost --rounds {rounds}`, {report.machine()}. Two workers, engine `sim`, {CONNECTIONS} "
            f"connections. Microseconds of CPU of all processes but the engine, and of the engine; median and range of "
            f"{rounds} rounds in which all kinds take turns.", "",
            f"Per streamed token, {STREAM_TOKENS} a stream:", "", report.table(*_table(tokens)),
            "Per chat request of one token:", "", report.table(*_table(requests)),
        ]
    )  # fmt: skip


def _table(figures: dict[str, Figures]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    header = ["chats", "front end, us", "times plain", "engine, us"]
    rows = [
        [name, report.spread(found.front_end), report.spread(found.ratios(figures["plain"]), 2), report.spread(found.engine)]
        for name, found in figures.items()
    ]  # fmt: skip
    return header, rows


if __name__ == "__main__":
    main()
