"""The peers' features, and which of them a running fleet has: docs/features.md, by one probe a row.

    python -m loadtests.peers.features [--out docs/features.md] [--only WORD]

What the peers have is data, features.tsv: read off vllm-rs and vLLM 0.33.0 and SGLang 0.5.23 (their wheels, routes, flags
and sources), not probed. What stands for tokenfleet is what the probes found in this very run.
"""

import argparse
import csv
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet
from loadtests.peers.features import behaviour, parameters, routes, vllm_engine
from loadtests.peers.features.rig import PROBES, Found, Rig
from loadtests.peers.server import Server
from loadtests.random_model import random_model
from loadtests.report import machine, table

DATA = Path(__file__).with_name("features.tsv")
MODULES = (routes, parameters, behaviour, vllm_engine)  # importing them makes their probes known
PEERS = ("vllm-rs", "vLLM", "SGLang")
WORDS = {"Y": "yes", "N": "no", "P": "partly", "?": "not established"}
FLAGS = (
    "--server-dev-mode", "--enable-tokenizer-info-endpoint", "--trust-request-chat-template", "--max-model-len", "4096",
    "--dtype", "float32", "--load-format", "dummy", "--engine-threads", "1",
    "--tool-call-parser", "hermes",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    section: str
    feature: str
    peers: tuple[str, ...]  # as of PEERS


def read_rows() -> list[Row]:
    with DATA.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [Row(section, feature, tuple(map(_word, peers))) for section, feature, *peers in rows]


def _word(value: str) -> str:
    first, space, rest = value.partition(" ")
    return WORDS.get(first.rstrip(",;"), first) + space + rest


def document(rows: Sequence[Row], found: Mapping[str, Found], seen_on: str) -> str:
    lines = [
        "# Features, beside the peers'", "",
        f"Written by `python -m loadtests.peers.features`, {seen_on}.", "",
        "The column tokenfleet is what a probe saw in a running fleet (random weights): a small real request, and a look",
        "at its answer. The peers' columns are not probed: they were read off the wheels of vLLM 0.33.0 (`vllm-rs` and the",
        "Python server) and SGLang 0.5.23. Rows are the peers' features, not ours.", "",
        summary(rows, found),
    ]  # fmt: skip
    for section in dict.fromkeys(row.section for row in rows):
        of_section = [row for row in rows if row.section == section]
        cells = [[row.feature, _ours(found[row.feature]), *row.peers] for row in of_section]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        lines += [f"## {section}", "", table(["", "tokenfleet", *PEERS], escaped)]
    return "\n".join(lines)


def summary(rows: Sequence[Row], found: Mapping[str, Found]) -> str:
    """How many rows of each section, as a table: yes / partly / no."""
    lines = []
    for section in dict.fromkeys(row.section for row in rows):
        of_section = [row for row in rows if row.section == section]
        ours = _counted(found[row.feature].answer for row in of_section)
        peers = [_counted(row.peers[place] for row in of_section) for place in range(len(PEERS))]
        lines.append([f"{section}, {len(of_section)} rows", f"**{ours}**", *peers])
    return table(["yes / partly / no", "tokenfleet", *PEERS], lines)


def _counted(cells: Iterable[str]) -> str:
    """What a peer has in a way of its own, said in other words, is none of the three."""
    counts = Counter(re.split(r"[ ;,(]", cell)[0] for cell in cells)
    return f"{counts['yes']} / {counts['partly']} / {counts['no']}"


def _ours(found: Found) -> str:
    return f"**{found.answer}**: {' '.join(found.finding.split())}"


@contextmanager
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = (*FLAGS, "--torch-profiler-dir", str(folder / "profiles"))
        model = random_model(embedded_model(), folder / "model")
        with tokenfleet.start(folder / "log", model=str(model), workers=2, flags=flags) as server:
            server.wait_ready(120.0)
            yield Rig(server, folder, _speculating)


def _speculating(folder: Path) -> Server:
    model = str(folder / "model")
    flags = (*FLAGS, "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}', "--device", "cpu")
    server = tokenfleet.start(folder / "speculating.log", model=model, flags=flags)
    server.wait_ready(120.0)
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the document there")
    parser.add_argument("--only", default="", help="probe the rows with this word, and write nothing")
    arguments = parser.parse_args()
    rows = [row for row in read_rows() if arguments.only.lower() in row.feature.lower()]
    found, failed = {}, []
    with rig() as probed:
        for row in rows:
            try:
                found[row.feature] = PROBES[row.feature](probed)
                print(f"{row.feature}: {_ours(found[row.feature])}", flush=True)
            except Exception as error:  # whatever a probe did not expect: it says nothing then
                failed.append(row.feature)
                print(f"{row.feature}: FAILED: {type(error).__name__}: {str(error)[:500]}", flush=True)
    if failed:
        sys.exit(f"{len(failed)} probes say nothing: {failed}")
    if arguments.out is not None and not arguments.only:
        arguments.out.write_text(document(rows, found, machine()))


if __name__ == "__main__":
    main()
