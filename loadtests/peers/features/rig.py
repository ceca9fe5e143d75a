"""What every probe has: a running fleet, ways to ask it, and its verdict.

A probe says "yes", "partly" or "no" with what it saw. What raises says nothing: the table is then not written.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from loadtests.chaos.fleet import SimFleet
from loadtests.peers.server import Server

Json = Any  # whatever an answer has
Answer = Literal["yes", "partly", "no"]
NOT_SERVED = (404, 405, 501)
ROOT = Path(__file__).parents[3]
HI = [{"role": "user", "content": "Say hello."}]
COLOUR: Json = {
    "type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR}}


@dataclass(frozen=True)
class Found:
    answer: Answer
    finding: str


@dataclass(frozen=True)
class Rig:
    """`server` runs a small model of random weights; a probe that needs another fleet starts a simulated one."""

    server: Server
    folder: Path
    speculating: Callable[[Path], Server]  # starts another server of that model, that guesses tokens

    def send(self, method: str, path: str, **options: Json) -> httpx.Response:
        return httpx.request(method, self.server.base_url + path, timeout=120, **options)

    def post(self, path: str, body: Json, **options: Json) -> Json:
        """Of an answer with status 200."""
        answer = self.send("POST", path, json=body, **options)
        assert answer.status_code == 200, f"{path}: {answer.status_code}: {answer.text[:300]}"
        return answer.json()

    def chat(self, **fields: Json) -> Json:
        return self.post("/v1/chat/completions", {"messages": HI, "temperature": 0, "max_tokens": 8, **fields})

    def complete(self, prompt: Json = "One, two,", **fields: Json) -> Json:
        return self.post("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 8, **fields})

    def events(self, path: str, body: Json) -> list[Json]:
        answer = self.send("POST", path, json={**body, "stream": True})
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert lines and lines[-1] == "[DONE]", answer.text[-300:]
        return [json.loads(line) for line in lines[:-1]]

    def refusal(self, path: str, body: Json) -> str:
        answer = self.send("POST", path, json=body)
        assert answer.status_code == 400, f"{path}: {answer.status_code}: {answer.text[:300]}"
        return str(answer.json()["error"]["message"])

    @contextmanager
    def sim(self, *flags: str, workers: int = 1) -> Iterator[SimFleet]:
        log = Path(tempfile.mkdtemp(dir=self.folder)) / "log"
        with SimFleet(log, *flags, "--restart-backoff-max-s", "0.1", workers=workers) as fleet:
            yield fleet


Probe = Callable[[Rig], Found]
PROBES: dict[str, Probe] = {}


def probe(feature: str) -> Callable[[Probe], Probe]:
    def keep(function: Probe) -> Probe:
        assert feature not in PROBES, feature
        PROBES[feature] = function
        return function

    return keep


def yes(finding: str) -> Found:
    return Found("yes", finding)


def no(finding: str) -> Found:
    return Found("no", finding)


def graded(seen: dict[str, bool]) -> Found:
    """By how many of the named things were seen."""
    missing = [name for name, is_there in seen.items() if not is_there]
    if not missing:
        return yes(", ".join(seen))
    there = [name for name, is_there in seen.items() if is_there]
    return Found("partly" if there else "no", f"{', '.join(there) or 'nothing'}; not {', '.join(missing)}")


def url(fleet: SimFleet, path: str) -> str:
    return f"http://127.0.0.1:{fleet.port}{path}"


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True
