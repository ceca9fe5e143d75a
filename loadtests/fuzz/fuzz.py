"""Spoiled requests against a sim fleet: none may be answered with a 5xx, hang, crash a process or leave anything behind.

    python -m loadtests.fuzz.fuzz [--requests 100000] [--seed 1] [--out FILE.md]

Before and after, the same good requests must get the same answers, and once all clients are gone nothing may run, wait or
hold K/V. A request that is cut short gets half a second of silence, then its client leaves: that is no hang.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.chaos.fleet import SimFleet
from loadtests.fuzz.spoiled import VALID, Request, mutated
from loadtests.report import machine

FLAGS = (
    "--sim-step-ms", "0", "--max-num-seqs", "64", "--max-num-queued-reqs", "100000", "--max-num-queued-tokens",
    "100000000", "--max-model-len", "256", "--max-body-bytes", "1000000", "--served-model-name", "tiny",
    "--log-level", "warning", "--server-dev-mode",
)  # fmt: skip
CONCURRENCY = 16
ANSWER_TIMEOUT_S = 60.0
SILENCE_S = 0.5  # a client that has sent less than it said
SETTLE_S = 30.0
SOURCES = 100  # addresses to connect from: the ports of one do not suffice for so many connections
QUIET_SERIES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "tokenfleet:broker_requests_in_flight",
)
NO_ANSWER = 0
STABLE = (
    "choices",
    "content",
    "data",
    "input_tokens",
    "tokens",
    "prompt",
    "paths",
)  # of an answer, from one time to the next


@dataclass
class Report:
    """What was seen. `faults` are what must not be."""

    num_requests: int
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def text(self, command: str) -> str:
        seen = ", ".join(
            f"{count} × {status or 'closed without an answer'}" for status, count in sorted(self.statuses.items())
        )
        verdict = "No fault." if not self.faults else f"{len(self.faults)} FAULTS:"
        shown = [f"- {fault}" for fault in self.faults[:50]]
        head = f"{self.num_requests} requests in {self.seconds:.0f} s: {seen}."
        return "\n".join(["# Fuzzing", "", f"`{command}`, {machine()}", "", head, "", verdict, *shown, ""])


async def exchange(port: int, raw: bytes, number: int) -> bytes:
    """The whole answer, b"" when there was none. Raises TimeoutError when the server neither answers nor closes."""
    address = f"127.0.0.{1 + number % SOURCES}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        writer.write(raw)
        answer = b""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S if _may_be_unfinished(raw) else None):
                        piece = await reader.read(1 << 16)
                except TimeoutError:
                    if not _may_be_unfinished(raw):
                        raise
                    return answer
                if not piece:
                    return answer
                answer += piece
    except (ConnectionError, BrokenPipeError):
        return b""
    finally:
        writer.transport.abort()


def _may_be_unfinished(raw: bytes) -> bool:
    """The server may rightly wait for more: the bytes are not one whole request that ends its connection."""
    head, end, body = raw.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [line.partition(b":")[2].strip() for line in lines if line.startswith(b"content-length")]
    is_plain = end and len(lengths) == 1 and lengths[0] == str(len(body)).encode()
    is_closing = b"connection: close" in lines and not any(
        line.startswith((b"transfer-encoding", b"upgrade", b"expect")) for line in lines
    )
    is_request = lines[0].endswith((b" http/1.1", b" http/1.0")) and lines[0].count(b" ") == 2
    return not (is_plain and is_closing and is_request)


def status_of(answer: bytes) -> int:
    """Of the last head; NO_ANSWER of what is no HTTP."""
    if answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    parts = answer.split(b" ", 2)
    return int(parts[1]) if answer.startswith(b"HTTP/1.") and len(parts) > 1 and parts[1].isdigit() else NO_ANSWER


async def fuzz(fleet: SimFleet, num_requests: int, seed: int) -> Report:
    """Send them all, CONCURRENCY at a time."""
    report, started_s = Report(num_requests), time.monotonic()
    pids = fleet.all_pids
    good = [await _good_answer(fleet.port, request) for request in VALID]
    report.faults += [f"a good request got {status}" for status, _ in good if status not in (200, 404)]
    numbers = iter(range(num_requests))

    async def client() -> None:
        for number in numbers:
            request = mutated(random.Random(f"{seed}/{number}"))
            await _send(fleet.port, request, number, report, f"seed {seed}/{number}")

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    report.seconds = time.monotonic() - started_s
    report.faults += await _leaks(fleet)
    after = [await _good_answer(fleet.port, request) for request in VALID]
    report.faults += [
        f"{request.path} answers otherwise: {old!r} then {new!r}"
        for request, old, new in zip(VALID, good, after, strict=True)
        if old != new
    ]
    if fleet.all_pids != pids:
        report.faults.append("a process of the fleet was replaced")
    return report


async def _send(port: int, request: Request, number: int, report: Report, name: str) -> None:
    raw = request.encode()
    try:
        answer = await exchange(port, raw, number)
    except TimeoutError:
        report.faults.append(f"{name}: no end within {ANSWER_TIMEOUT_S:.0f} s: {raw[:300]!r}")
        return
    status = status_of(answer)
    report.statuses[status] += 1
    if status >= 500:
        report.faults.append(f"{name}: {status}: {raw[:1000]!r} {answer[-500:]!r}")


async def _good_answer(port: int, request: Request) -> tuple[int, Any]:
    """Status and what of the answer does not change from one time to the next."""
    answer = await exchange(port, request.encode(), 0)
    status, body = status_of(answer), answer.partition(b"\r\n\r\n")[2]
    if b"text/event-stream" in answer.lower():
        return status, body.count(b"data: ") > 0 and b"rror" not in body
    content = json.loads(body)
    return status, {name: content[name] for name in STABLE if name in content}


async def _leaks(fleet: SimFleet) -> list[str]:
    """What still runs, waits or holds K/V after SETTLE_S."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        held = [line for line in await _series(fleet.port) if float(line.rsplit(" ", 1)[1]) > 0]
        if not held or time.monotonic() > until_s:
            return [f"left behind: {line}" for line in held]
        await asyncio.sleep(0.2)


async def _series(port: int) -> list[str]:
    answer = await exchange(port, Request("GET", "/metrics").encode(), 0)
    return [line for line in answer.decode().splitlines() if line.startswith(QUIET_SERIES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the report there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "fleet.log"
        with SimFleet(log, *FLAGS) as fleet:
            report = asyncio.run(fuzz(fleet, arguments.requests, arguments.seed))
        report.faults += crashes(log)
    text = report.text(f"python -m loadtests.fuzz.fuzz --requests {arguments.requests} --seed {arguments.seed}")
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)
    sys.exit(bool(report.faults))


def crashes(log: Path) -> list[str]:
    """Lines of the fleet's log that tell of a fault of ours."""
    words = ("request crashed", "Traceback", "error    ")
    return [line for line in log.read_text(errors="replace").splitlines() if any(word in line for word in words)]


if __name__ == "__main__":
    main()
