"""How much of JSON Schema answers can be held to, and whether they are.

    python -m loadtests.conformance --suite FOLDER [--requests 4000] [--out FILE.md]

Every schema of the suite (draft 2020-12, optional cases too) is compiled as the server and the engine do, the suite's
instances are walked through the masks that the sampler gets, and a fleet with random weights answers requests for every
schema over HTTP, 32 at a time. Each answer that ends by itself must validate (jsonschema).
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

from loadtests.conformance.generations import CONCURRENCY, MAX_TOKENS, Generated, generate
from loadtests.conformance.instances import Walked, walk
from loadtests.conformance.suite import read_suite
from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet
from loadtests.random_model import random_model
from loadtests.report import machine, table

MIN_ENDED = 1000
FLAGS = (
    "--load-format", "dummy", "--max-model-len", "1024", "--max-num-seqs", str(CONCURRENCY), "--engine-threads", "1",
)  # fmt: skip


def report(command: str, walked: Walked, generated: Generated) -> str:
    num_schemas = len(walked.compiled) + len(walked.refused)
    valid = {name: count for name, count in walked.verdicts.items() if name.startswith("valid")}
    invalid = {name: count for name, count in walked.verdicts.items() if name.startswith("invalid")}
    share = 100 * len(walked.compiled) / num_schemas
    ended = sum(generated.ended.values())
    wrong = len(generated.faults)
    lines = [
        "# JSON Schema Test Suite, draft 2020-12", "", f"`{command}`, {machine()}", "",
        f"**Schemas**: {len(walked.compiled)} of {num_schemas} compile ({share:.0f} %); "
        f"{len(walked.refused)} are refused with a 400 that says why.", "",
        f"**Instances** of the schemas that compile: {_shares(valid)}; {_shares(invalid)}.", "",
        f"**Answers** of random weights, temperature 1, at most {MAX_TOKENS} tokens, {CONCURRENCY} at a time: "
        f"{sum(generated.finishes.values())}, of which {generated.finishes['stop']} ended by themselves, from "
        f"{len(generated.ended)} schemas, and {generated.finishes['length']} were cut by their length; "
        f"{generated.num_tokens} tokens. Of the {ended} that ended, "
        f"{f'not all ({wrong} faults)' if wrong else 'all'} parse and validate.", "",
        *_listed("Faults", [*(f"let through: {name}" for name in walked.let_through), *generated.faults]),
        *_listed("Valid instances that no answer can be", walked.unreachable),
        "## By keyword", "", _by_keyword(walked, generated),
    ]  # fmt: skip
    return "\n".join(lines)


def _shares(verdicts: dict[str, int]) -> str:
    total = sum(verdicts.values())
    return ", ".join(f"{count} of {total} {name}" for name, count in sorted(verdicts.items()))


def _listed(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items or ["none"]), ""]


def _by_keyword(walked: Walked, generated: Generated) -> str:
    compiled = Counter(case.keyword for case in walked.compiled)
    ended: Counter[str] = Counter()
    for case in walked.compiled:
        ended[case.keyword] += generated.ended[case.name]
    reasons: dict[str, list[str]] = {}
    for case, reason in walked.refused:
        found = reasons.setdefault(case.keyword, [])
        short = reason.split(" is not present")[0][:90].replace("|", "\\|")
        if short not in found:
            found.append(short)
    refused = Counter(case.keyword for case, _ in walked.refused)
    rows = [
        [
            keyword,
            str(compiled[keyword]),
            str(refused[keyword]),
            str(ended[keyword]),
            "; ".join(reasons.get(keyword, [])[:3]),
        ]
        for keyword in sorted(compiled | refused)
    ]
    return table(["keyword", "compiled", "refused", "answers that ended", "why refused (first three)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="folder with tests/draft2020-12")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--out", type=Path, help="write the report there, too")
    arguments = parser.parse_args()
    cases, model = read_suite(arguments.suite), embedded_model()
    walked = walk(cases, model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = random_model(model, folder / "model")
        with tokenfleet.start(folder / "log", model=str(random), flags=FLAGS) as server:
            server.wait_ready(90.0)
            generated = asyncio.run(generate(server.port, cases, arguments.requests))
    generated.faults += [
        f"{case.name}: refused by the server, not by the compiler"
        for case in walked.compiled
        if case.name in generated.refused
    ]
    generated.faults += [
        f"{case.name}: accepted by the server, refused by the compiler"
        for case, _ in walked.refused
        if case.name not in generated.refused
    ]
    if sum(generated.ended.values()) < MIN_ENDED:
        generated.faults.append(f"fewer than {MIN_ENDED} answers ended by themselves: ask for more")
    text = report(f"python -m loadtests.conformance --suite FOLDER --requests {arguments.requests}", walked, generated)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)
    sys.exit(bool(walked.let_through or generated.faults))


if __name__ == "__main__":
    main()
