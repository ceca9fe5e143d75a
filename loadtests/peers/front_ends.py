"""CPU per token and per request of three front ends, side by side: tokenfleet, vllm-rs, vLLM's Python API server.

    loadtests/peers/install.sh
    python -m loadtests.peers.front_ends [--rounds 2] [--only stream] [--workers N] [--with-python] [--bridged] [--out FILE.md]

Each stands before an engine that computes nothing (tokenfleet's `sim`, the mock engine for vLLM's) and paces the same
steps. CPU is user + system time of every process of the front end but the engine, from /proc, over the whole load
divided by the tokens or requests the client received, so a request's fixed cost is in a token's. No side logs requests.
Alternating rounds; the ratios compare figures of one round. Core for core: N workers against N threads, by default as many
as `tokenfleet serve` would start on this machine. With `--bridged` tokenfleet stands before the mock engine too,
through its engine `vllm`, whose process then counts as the front end's. Loopback charges the sender for part of the
receiver's work: all sides alike.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests import bench_client, report, whole_answers
from loadtests.bench_client import Load
from loadtests.chart import ratio_chart
from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet, vllm_front_ends
from loadtests.peers.server import Server
from loadtests.processes import cpu_time, memory
from loadtests.prompts import long_context_copy, write_english
from ops.cores import default_num_workers, usable_cores

LOG = Path("/tmp/tokenfleet-front-ends.log")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    step_ms: float
    load: Load
    target_ratio: float  # ours / vllm-rs
    english: int | None = None  # the prompts are English text; this many are distinct
    is_whole: bool = False  # not streamed

    @property
    def per_token(self) -> bool:
        return self.load.output_tokens > 1


CASES = (
    Case("chat stream 32→256, 64 streams, 20 ms steps", 20, Load(32, 256, 192, 64), 0.45),
    Case("chat stream 32→256, 256 streams, 20 ms steps", 20, Load(32, 256, 768, 256), 0.45),
    Case("chat stream 32→256, 256 streams, step 0", 0, Load(32, 256, 1024, 256), 0.85),
    Case("token of a whole answer, 64 connections, 20 ms steps", 20, Load(32, 256, 192, 64), 0.15, is_whole=True),
    Case("chat request 32→1", 0, Load(32, 1, 6000, 64), 0.50),
    Case("chat request 1024→1, random", 0, Load(1024, 1, 1500, 32), 0.30),
    Case("chat request 1024→1, English", 0, Load(1024, 1, 1500, 32), 0.30, english=1500),
    Case("chat request 8192→1, English", 0, Load(8192, 1, 200, 16), 0.25, english=200),
    Case("chat request 8192→1, English, 8 prompts again and again", 0, Load(8192, 1, 400, 16), 0.12, english=8),
)
MAX_MODEL_LEN = 32_768
SIM = (
    "--engine",
    "sim",
    "--max-num-seqs",
    "4096",
    "--max-num-batched-tokens",
    "1000000",  # the mock has no such bounds
    "--log-level",
    "warning",  # a line for every request is what the rivals leave out, too, unless told otherwise
)


@dataclass
class Figures:
    """One value per round."""

    cpu_us: list[float] = field(default_factory=list)
    system_share: list[float] = field(default_factory=list)
    ttft_p50_ms: list[float] = field(default_factory=list)
    itl_p99_ms: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--with-python", action="store_true", help="vLLM's Python server too: a second quarter of an hour"
    )
    parser.add_argument("--bridged", action="store_true", help="tokenfleet by its engine vllm")
    parser.add_argument(
        "--workers",
        type=int,
        default=default_num_workers(num_engines=1, cores=usable_cores()),
        help="of tokenfleet, and threads of vllm-rs; default: %(default)s, as `tokenfleet serve` has it here",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = str(long_context_copy(embedded_model(), scratch / "model", MAX_MODEL_LEN))
        token_ids = scratch / "token-ids.json"
        token_ids.write_text(json.dumps(printable_token_ids(model)))
        rows, ratios = [], []
        for case in CASES:
            if arguments.only in case.name:
                figures = run_case(
                    case, model, token_ids, arguments.rounds, arguments.workers,
                    with_python=arguments.with_python, is_bridged=arguments.bridged,
                )  # fmt: skip
                rows.append(row(case, figures))
                ratios.append((case.name, statistics.median(ratios_of(figures)), case.target_ratio))
                print(rows[-1], flush=True)
    text = render(rows, arguments.workers, is_bridged=arguments.bridged)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
        title = "CPU of the front end per token or request, tokenfleet / vllm-rs (dashed: target)"
        arguments.out.with_suffix(".svg").write_text(ratio_chart(title, ratios))


def printable_token_ids(model: str) -> list[int]:
    """Ids that stand for printable ASCII on their own, so that every token is one event in every front end."""
    vocabulary: dict[str, int] = json.loads((Path(model) / "tokenizer.json").read_text())["model"]["vocab"]
    return [number for text, number in vocabulary.items() if (text.replace("Ġ", "").isalnum() and text.isascii()) or 0]


def run_case(
    case: Case, model: str, token_ids: Path, rounds: int, workers: int, *, with_python: bool, is_bridged: bool
) -> dict[str, Figures]:
    flags = (*SIM, "--sim-step-ms", str(case.step_ms))
    if case.english is not None:
        dataset = Path(model) / f"english-{case.load.input_tokens}-{case.english}.jsonl"
        write_english(dataset, Path(model), case.load.input_tokens, case.load.num_requests, case.english)
        case = replace(case, load=replace(case.load, dataset=dataset))
    starters: dict[str, Callable[[], Server]] = {
        "tokenfleet": lambda: tokenfleet.start(LOG, model=model, workers=workers, flags=flags),
        "vllm-rs": lambda: vllm_front_ends.start_rust(
            LOG, model=model, token_ids=token_ids, step_ms=case.step_ms, env={"TOKIO_WORKER_THREADS": str(workers)}
        ),
    }
    if is_bridged:
        starters["tokenfleet"] = lambda: vllm_front_ends.start_bridged(
            LOG, model=model, token_ids=token_ids, step_ms=case.step_ms, workers=workers
        )
    if with_python:
        starters["vllm-python"] = lambda: vllm_front_ends.start_python(
            LOG, model=model, token_ids=token_ids, step_ms=case.step_ms
        )
    figures = {name: Figures() for name in starters}
    for round_number in range(rounds):
        for name, start in starters.items():
            with start() as server:
                server.wait_ready(timeout_s=180)
                measure(server, model, case, figures[name], round_number)
    return figures


def measure(server: Server, tokenizer: str, case: Case, figures: Figures, round_number: int) -> None:
    warm_up = Load(case.load.input_tokens, min(16, case.load.output_tokens), 64, 32)
    bench_client.run(server, tokenizer, warm_up, seed=999)
    pids = server.front_end_pids
    before = cpu_time(pids)
    if case.is_whole:
        connections, requests = case.load.concurrency, case.load.num_requests // case.load.concurrency
        outcome = whole_answers.run(
            server, num_tokens=case.load.output_tokens, connections=connections, requests_per_connection=requests
        )
    else:
        outcome = bench_client.run(server, tokenizer, case.load, seed=round_number)
    spent = cpu_time(pids) - before
    divisor = outcome.output_tokens if case.per_token else outcome.completed
    figures.cpu_us.append(spent.total_s / divisor * 1e6)
    figures.system_share.append(spent.system_s / spent.total_s)
    figures.ttft_p50_ms.append(outcome.ttft_p50_ms)
    figures.itl_p99_ms.append(outcome.itl_p99_ms)
    figures.pss_mb.append(memory(pids).pss_mb)


def row(case: Case, figures: dict[str, Figures]) -> list[str]:
    ours, rust = figures["tokenfleet"], figures["vllm-rs"]
    python = figures.get("vllm-python")
    return [
        case.name,
        report.spread(ours.cpu_us),
        report.spread(rust.cpu_us),
        report.spread(python.cpu_us) if python else "–",
        report.spread(ratios_of(figures), 2),
        f"{case.target_ratio:.2f}",
        "–" if case.is_whole else f"{report.spread(ours.ttft_p50_ms)} / {report.spread(rust.ttft_p50_ms)}",
        f"{report.spread(ours.pss_mb, 0)} / {report.spread(rust.pss_mb, 0)}",
    ]


def ratios_of(figures: dict[str, Figures]) -> list[float]:
    """Ours / vllm-rs, of one round each."""
    return [a / b for a, b in zip(figures["tokenfleet"].cpu_us, figures["vllm-rs"].cpu_us, strict=True)]


def render(rows: list[list[str]], workers: int, *, is_bridged: bool) -> str:
    our_engine = "engine `vllm`, its process counted," if is_bridged else "engine `sim`,"
    options = f"--workers {workers}" + (" --bridged" if is_bridged else "")
    header = [
        "case", "tokenfleet, us", "vllm-rs, us", "vLLM Python, us", "ours / vllm-rs", "target",
        "TTFT p50 ms, ours / rs", "PSS MB, ours / rs",
    ]  # fmt: skip
    return (
        "# CPU of the front end per token or request\n\n"
        f"{report.machine()}. tokenfleet with {counted(workers, 'worker')} and {our_engine} vllm-rs 0.33.0 with "
        f"{counted(workers, 'thread')} of Tokio, it and vLLM 0.32.0 behind a mock engine of the same pace, client "
        "`vllm-rs bench serve` 0.33.0 on the same cores; microseconds of CPU, median and range over alternating rounds. "
        f"Command: `python -m loadtests.peers.front_ends {options}`.\n\n" + report.table(header, rows)
    )


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    main()
