"""A real vLLM engine on a GPU behind the fleet, behind vLLM's Rust front end and behind its Python server: who holds it back?

    python -m loadtests.gpu.vllm_front_ends --vllm-python ~/vllm/bin/python [--cores 1 4] [--rounds 2] [--out FILE.md]

SmolLM2-135M, which a GPU computes faster than a core of a front end may pass on. Every front end has an engine core of its own;
all are up at once on the same GPU and the same cores, and only the one that is asked works, so that rounds alternate without a
start between them. Front ends of one size share their cores, too: some for the engine cores, some for the front ends
(`--cores`), the rest for the client, `vllm-rs bench serve`. CPU is that of a front end's processes, its bridge among them.
"""

import argparse
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

from loadtests import bench_client, report
from loadtests.bench_client import Load, Outcome
from loadtests.embedded_model import embedded_model
from loadtests.gpu.server import children_s
from loadtests.peers import vllm_front_ends
from loadtests.peers.server import MODEL_NAME, Server, free_port
from loadtests.peers.vllm_front_ends import BridgedFleet, FrontEnd
from loadtests.processes import cpu_time, descendants, pin, title
from loadtests.prompts import write_english

START_TIMEOUT_S = 300.0
FLEET, RUST, PYTHON = "tokenfleet, engine vllm", "vllm-rs", "vLLM's Python server"
WARM = (Load(32, 64, 1024, 1024), Load(32, 16, 64, 8))


@dataclass(frozen=True)
class Case:
    """One load. Its prompts are random, or so many of English text, which are asked again and again and stay in vLLM's prefix
    cache."""

    name: str
    load: Load
    of_python: int  # requests for vLLM's Python server, which takes several times as long
    english: int | None = None

    @property
    def streams(self) -> bool:
        return self.load.output_tokens > 1


CASES = (
    Case("64 streams, 32 in, 256 out", Load(32, 256, 512, 64), 192),
    Case("256 streams, 32 in, 256 out", Load(32, 256, 1536, 256), 512),
    Case("1024 streams, 32 in, 256 out", Load(32, 256, 4096, 1024), 1024),
    Case("chats of 32 tokens, 1 out, 64 at once", Load(32, 1, 8000, 64), 2000),
    Case("chats of 1024 cached tokens, 1 out, 64 at once", Load(1024, 1, 6000, 64), 1000, english=16),
    Case("chats of 7000 cached tokens, 1 out, 64 at once", Load(7000, 1, 1500, 64), 200, english=16),
)


class Contender(NamedTuple):
    kind: str
    num_cores: int
    server: FrontEnd

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.num_cores} {'core' if self.num_cores == 1 else 'cores'}"


class Cores(NamedTuple):
    """Which are whose."""

    engine: list[int]
    front_end: list[int]  # of the largest; a smaller one has the first of them
    client: list[int]


@dataclass
class Figures:
    """One value per round."""

    per_s: list[float] = field(default_factory=list)  # tokens where the case streams, else requests
    ttft_p50_ms: list[float] = field(default_factory=list)
    ttft_p99_ms: list[float] = field(default_factory=list)
    itl_p50_ms: list[float] = field(default_factory=list)
    itl_p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # per token or request
    busy_cores: list[float] = field(default_factory=list)
    engine_cores: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--vllm-rs", type=Path, help="its Rust front end; default: the one that its vLLM brings")
    parser.add_argument(
        "--as-0-33", action="store_true",
        help="the engine cores of vLLM 0.24 speak as 0.33's (loadtests.gpu.newer_messages), for a --vllm-rs of 0.33",
    )  # fmt: skip
    parser.add_argument("--model", help="a folder with weights; default: the embedded one")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 4], help="sizes of the front ends")
    parser.add_argument("--engine-cores", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python-rounds", type=int, default=1, help="of vLLM's Python server; 0: not at all")
    parser.add_argument("--share", type=float, default=1.0, help="of the requests")
    parser.add_argument("--texts", type=int, default=20, help="greedy chats that are compared")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--log-folder", type=Path, default=Path("/tmp/tokenfleet-vllm-front-ends"))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--engine-flags", type=str.split, help="of vLLM",
        default="--gpu-memory-utilization 0.08 --kv-cache-memory-bytes 10G --max-num-seqs 1024 --cudagraph-capture-sizes "
        "1 2 4 8 16 32 64 128 256 512 1024",
    )  # fmt: skip
    arguments = parser.parse_args()
    arguments.log_folder.mkdir(parents=True, exist_ok=True)
    cores = divided(sorted(os.sched_getaffinity(0)), arguments.engine_cores, max(arguments.cores))
    print(report.machine(), cores, flush=True)
    model = arguments.model or str(embedded_model())
    cases = [scaled(case, arguments.share) for case in CASES if arguments.only in case.name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cases = [with_prompts(case, Path(model), Path(folder)) for case in cases]
        contenders = started(arguments, model, cores, stack)
        client = ("taskset", "-c", ",".join(map(str, cores.client)))
        for contender in contenders:
            warm_up(contender.server, model, cases, client)
        print(compared_texts(contenders, arguments.texts), flush=True)
        figures = {(case.name, contender.name): Figures() for case in cases for contender in contenders}
        for round_number in range(arguments.rounds):
            for case in cases:
                for contender in contenders:
                    if contender.kind != PYTHON or round_number < arguments.python_rounds:
                        into = figures[case.name, contender.name]
                        measure(contender, model, case, into, round_number, client)
        text = render(figures, cores)
        print(text, flush=True)
        if arguments.out:
            arguments.out.write_text(text)


def divided(cores: list[int], engine: int, front_end: int) -> Cores:
    if len(cores) <= engine + front_end:
        raise SystemExit(
            f"{len(cores)} cores: {engine} for the engine and {front_end} for a front end leave none to ask"
        )
    return Cores(cores[:engine], cores[engine : engine + front_end], cores[engine + front_end :])


def scaled(case: Case, share: float) -> Case:
    """Never fewer requests than streams."""
    requests = max(case.load.concurrency, round(case.load.num_requests * share))
    return replace(
        case, load=replace(case.load, num_requests=requests), of_python=max(1, round(case.of_python * share))
    )


def with_prompts(case: Case, model: Path, folder: Path) -> Case:
    if case.english is None:
        return case
    path = folder / f"english-{case.load.input_tokens}.jsonl"
    write_english(path, model, case.load.input_tokens, case.english)
    return replace(case, load=replace(case.load, dataset=path))


def started(arguments: argparse.Namespace, model: str, cores: Cores, stack: ExitStack) -> list[Contender]:
    """All of them, ready."""
    rust = arguments.vllm_rs or rust_of(arguments.vllm_python)
    vllm = [arguments.vllm_python, "-m", "vllm.entrypoints.cli.main"]
    engine_vllm = [arguments.vllm_python, "-m", "loadtests.gpu.newer_messages"] if arguments.as_0_33 else vllm
    commands: dict[str, Callable[[int, int, int], list[str]]] = {
        FLEET: lambda port, handshake, size: vllm_front_ends.fleet_command(
            model, port, handshake, workers=max(1, size - 1)
        ),
        RUST: lambda port, handshake, _: vllm_front_ends.rust_command(model, port, handshake, binary=rust),
        PYTHON: lambda port, handshake, size: vllm_front_ends.python_command(
            model, port, handshake, vllm=vllm, flags=("--api-server-count", str(size))
        ),
    }
    contenders: list[Contender] = []
    for size in arguments.cores:
        pinned = ["taskset", "-c", ",".join(map(str, cores.front_end[:size]))]
        for kind, command in commands.items():
            if kind == PYTHON and not arguments.python_rounds:
                continue
            port, handshake = free_port(), free_port()
            engine = vllm_front_ends.headless(engine_vllm, model, handshake, flags=arguments.engine_flags)
            start = BridgedFleet if kind == FLEET else FrontEnd
            server = start(
                f"{kind} {size}", [*pinned, *command(port, handshake, size)],
                port=port, log_path=arguments.log_folder / f"{len(contenders)}.log", engine=engine,
            )  # fmt: skip
            stack.enter_context(server)
            contenders.append(Contender(kind, size, server))
    for contender in contenders:
        ready(contender, cores)
    return contenders


def rust_of(python: str) -> Path:
    code = "import importlib.util; print(importlib.util.find_spec('vllm').origin)"
    package = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return Path(package.strip()).with_name("vllm-rs")


def ready(contender: Contender, cores: Cores) -> None:
    contender.server.wait_ready(START_TIMEOUT_S)
    pin(engine_pids(contender.server), cores.engine)
    print(f"ready: {contender.name}", flush=True)


def engine_pids(server: Server) -> list[int]:
    return [pid for root in server.beside for pid in descendants(root)]


def warm_up(server: Server, model: str, cases: Sequence[Case], client: Sequence[str]) -> None:
    """Every kernel compiled, every prompt of English text in the prefix cache."""
    for load in WARM:
        bench_client.run(server, model, load, seed=999, pin=client)
    for case in cases:
        if case.english is not None:
            bench_client.run(server, model, replace(case.load, num_requests=2 * case.english), pin=client)


def compared_texts(contenders: Sequence[Contender], count: int) -> str:
    """Greedy, one at a time."""
    first, *others = contenders
    names = sorted(topics.topics)[:count]
    texts = {contender: [text_of(contender.server, name) for name in names] for contender in contenders}
    same = [sum(map(str.__eq__, texts[first], texts[other])) for other in others]
    found = ", ".join(f"{number} with {other.name}" for number, other in zip(same, others, strict=True))
    return f"{count} greedy chats through {first.name}, {len(set(texts[first]))} distinct texts, the same text: {found}"


def text_of(server: Server, name: str) -> str:
    messages = [{"role": "user", "content": f"Explain {name} in Python."}]
    body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 64, "temperature": 0}
    request = urllib.request.Request(
        server.base_url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def measure(
    contender: Contender, model: str, case: Case, figures: Figures, round_number: int, client: Sequence[str]
) -> None:
    server, engines = contender.server, engine_pids(contender.server)
    load = replace(case.load, flags=("--temperature", "1"))
    if contender.kind == PYTHON:
        load = replace(load, num_requests=case.of_python * contender.num_cores)
    pids = server.front_end_pids
    before = {pid: cpu_time([pid]).total_s for pid in pids}
    engine_before, client_before = cpu_time(engines).total_s, children_s()
    outcome: Outcome = bench_client.run(server, model, load, seed=round_number, pin=client)
    by_pid = {pid: cpu_time([pid]).total_s - before[pid] for pid in pids}
    engine_s, client_s = cpu_time(engines).total_s - engine_before, children_s() - client_before
    spent_s, count = sum(by_pid.values()), outcome.output_tokens if case.streams else outcome.completed
    figures.per_s.append(count / outcome.duration_s)
    figures.ttft_p50_ms.append(outcome.ttft_p50_ms)
    figures.ttft_p99_ms.append(outcome.ttft_p99_ms)
    figures.itl_p50_ms.append(outcome.itl_p50_ms)
    figures.itl_p99_ms.append(outcome.itl_p99_ms)
    figures.cpu_us.append(spent_s / count * 1e6)
    figures.busy_cores.append(spent_s / outcome.duration_s)
    figures.engine_cores.append(engine_s / outcome.duration_s)
    shares = ", ".join(f"{title(pid)[:40]} {s:.2f}" for pid, s in by_pid.items() if s > 0.05)
    print(
        f"{case.name} | {contender.name} | {outcome} | CPU s: {spent_s:.2f} ({shares}), engine {engine_s:.2f}, "
        f"client {client_s:.2f}",
        flush=True,
    )


def render(figures: dict[tuple[str, str], Figures], cores: Cores) -> str:
    header = [
        "load", "front end", "tokens or requests a second", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99, ms",
        "its CPU per token or request, us", "its busy cores", "engine's busy cores",
    ]  # fmt: skip
    rows = [
        [
            case,
            name,
            *(report.spread(values, 0) for values in (f.per_s, f.ttft_p50_ms, f.ttft_p99_ms)),
            *(report.spread(values) for values in (f.itl_p50_ms, f.itl_p99_ms, f.cpu_us)),
            *(report.spread(values, 2) for values in (f.busy_cores, f.engine_cores)),
        ]
        for (case, name), f in figures.items()
        if f.per_s
    ]
    return (
        f"{report.machine()}; {len(cores.engine)} cores for the engine, {len(cores.client)} for the client\n\n"
        + report.table(header, rows)
    )


if __name__ == "__main__":
    main()
