"""What prompt lookup gives: tokens per second with it and without, how many guesses are right, whether the text is the same.

    python -m loadtests.speculation [--model DIR] [--rounds 3] [--tokens 96] [--out FILE.md] [-- FLAGS OF BOTH SERVERS]

Two servers, both up, one of them with `--speculative-config`, answer the same greedy requests in turns: it is their ratio
that a busy machine does not spoil. `list` goes on with a list that goes round; `quote` is asked to repeat a passage of its
prompt, `prose` to write freely. Acceptance is of `vllm:spec_decode_*`, per round. Exactness
is promised in float32 (`-- --dtype float32`); in bf16 the last column says how often the text was the same.
"""

import argparse
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data import topics
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loadtests import report
from loadtests.peers import tokenfleet
from loadtests.peers.server import MODEL_NAME, Server

CONFIG = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
STREAMS = (1, 8)
NUM_PROMPTS = 8
FRUITS = ("apples", "pears", "plums", "figs", "dates", "limes", "grapes", "melons", "cherries", "olives")
SUBJECTS = ("a lighthouse", "a baker", "the sea", "two brothers", "a train", "an old clock", "rain", "a fox")

Messages = list[dict[str, str]]


def chats(kind: str) -> list[Messages]:
    return [[{"role": "user", "content": text}] for text in _texts(kind)]


def _texts(kind: str) -> list[str]:
    if kind == "list":
        lists = (", ".join(FRUITS[start : start + 3]) for start in range(NUM_PROMPTS))
        return [f"Write this list again and again: {names}, {names}, {names}" for names in lists]
    if kind == "quote":
        passages = [" ".join(topics.topics[name].split()[:60]) for name in sorted(topics.topics)[:NUM_PROMPTS]]
        return [f"Repeat this passage word by word:\n\n{passage}" for passage in passages]
    return [f"Write a story about {subject}." for subject in SUBJECTS]


@dataclass(frozen=True)
class Drafts:
    """Ever-growing counts of a server."""

    num_drafts: float
    num_tokens: float
    num_accepted: float

    def __sub__(self, earlier: "Drafts") -> "Drafts":
        return Drafts(
            self.num_drafts - earlier.num_drafts,
            self.num_tokens - earlier.num_tokens,
            self.num_accepted - earlier.num_accepted,
        )


@dataclass
class Figures:
    """One value per round."""

    plain_tok_s: list[float] = field(default_factory=list)
    drafted_tok_s: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    accepted_share: list[float] = field(default_factory=list)
    accepted_per_draft: list[float] = field(default_factory=list)
    num_same: int = 0
    num_answers: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--out", type=Path)
    parser.add_argument("flags", nargs="*", help="of both servers, behind --")
    arguments = parser.parse_args()
    figures: dict[tuple[str, int], Figures] = {}
    logs = [Path(f"/tmp/tokenfleet-speculation-{name}.log") for name in ("plain", "drafting")]
    drafting_flags = [*arguments.flags, "--speculative-config", json.dumps(CONFIG)]
    with (
        tokenfleet.start(logs[0], model=arguments.model, flags=arguments.flags) as plain,
        tokenfleet.start(logs[1], model=arguments.model, flags=drafting_flags) as drafting,
    ):
        for server in (plain, drafting):
            server.wait_ready(timeout_s=300)
            for num_streams in STREAMS:
                answer_all(server, chats("prose"), num_streams, max_tokens=16)
        for _ in range(arguments.rounds):
            for kind in ("list", "quote", "prose"):
                for num_streams in STREAMS:
                    own = figures.setdefault((kind, num_streams), Figures())
                    measure(plain, drafting, chats(kind), num_streams, arguments.tokens, own)
                    print(kind, num_streams, own, flush=True)
    text = render(figures, arguments.rounds, arguments.tokens, arguments.flags)
    if arguments.out is not None:
        arguments.out.write_text(text)
    print(text)


def measure(
    plain: Server, drafting: Server, asked: list[Messages], num_streams: int, max_tokens: int, figures: Figures
) -> None:
    """One workload's part of one round."""
    plain_s, answers = answer_all(plain, asked, num_streams, max_tokens)
    before = drafts_of(drafting)
    drafted_s, drafted = answer_all(drafting, asked, num_streams, max_tokens)
    drafts = drafts_of(drafting) - before
    num_tokens = len(asked) * max_tokens
    figures.plain_tok_s.append(num_tokens / plain_s)
    figures.drafted_tok_s.append(num_tokens / drafted_s)
    figures.ratios.append(plain_s / drafted_s)
    figures.accepted_share.append(100 * drafts.num_accepted / max(1, drafts.num_tokens))
    figures.accepted_per_draft.append(drafts.num_accepted / max(1, drafts.num_drafts))
    figures.num_same += sum(one == other for one, other in zip(answers, drafted, strict=True))
    figures.num_answers += len(asked)


def answer_all(server: Server, asked: list[Messages], num_streams: int, max_tokens: int) -> tuple[float, list[str]]:
    """Seconds from the first request to the last answer, and the answers."""
    started_s = time.monotonic()
    with ThreadPoolExecutor(num_streams) as pool:
        answers = list(pool.map(lambda messages: answer(server, messages, max_tokens), asked))
    return time.monotonic() - started_s, answers


def answer(server: Server, messages: Messages, max_tokens: int) -> str:
    """Raises ValueError when it is not of exactly so many tokens."""
    body = {
        "model": MODEL_NAME, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{server.base_url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        whole: dict[str, Any] = json.load(response)  # Any: the JSON of an answer
    if whole["usage"]["completion_tokens"] != max_tokens:
        raise ValueError(f"{whole['usage']} instead of {max_tokens} tokens")
    text: str = whole["choices"][0]["message"]["content"]
    return text


def drafts_of(server: Server) -> Drafts:
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    values = {sample.name: sample.value for family in families for sample in family.samples}
    names = ("drafts", "draft_tokens", "accepted_tokens")
    return Drafts(*(values[f"vllm:spec_decode_num_{name}_total"] for name in names))


def render(figures: dict[tuple[str, int], Figures], rounds: int, max_tokens: int, flags: list[str]) -> str:
    header = [
        "text",
        "streams",
        "tok/s without",
        "tok/s with",
        "ratio",
        "guesses right, %",
        "right per guess",
        "same text",
    ]
    rows = [
        [
            kind, str(num_streams), report.spread(f.plain_tok_s), report.spread(f.drafted_tok_s),
            report.spread(f.ratios, 2), report.spread(f.accepted_share, 0), report.spread(f.accepted_per_draft, 2),
            f"{f.num_same} of {f.num_answers}",
        ]
        for (kind, num_streams), f in figures.items()
    ]  # fmt: skip
    command = " ".join(
        [
            "python -m loadtests.speculation",
            f"--rounds {rounds} --tokens {max_tokens}",
            *(["--", *flags] if flags else []),
        ]
    )
    return (
        "# Prompt lookup: the same requests with and without it\n\n"
        f"`{command}`: `--speculative-config '{json.dumps(CONFIG)}'`\n"
        f"against none, {NUM_PROMPTS} greedy chats of {max_tokens} tokens out each. Median and range over the rounds, which\n"
        "alternate. At most "
        f"{CONFIG['num_speculative_tokens']} tokens to a guess.\n\n{report.machine()}\n\n" + report.table(header, rows)
    )


if __name__ == "__main__":
    main()
