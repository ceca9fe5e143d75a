"""Throughput by cores: tokenfleet with N workers on N cores, vllm-rs with N threads on the same N cores.

    loadtests/peers/install.sh
    python -m loadtests.peers.scale [--cores 1 2 4 8] [--client-cores 6] [--engines 1] [--paced] [--model FOLDER]

The engine (sim, mock) has a core of its own; with `--engines` tokenfleet has several, each with a core, for `sim` does all of
a scheduler's work and the mock next to none. The client has its own cores; the front end, broker included, has the rest
that it is given. Steps follow each other without a pause, so that the front end is what saturates, until the client or the
engine does: `busy` is the share of its cores that the front end used. Two shapes: 32 in and 512 out by 1024 streams,
and chats of 10 000 English tokens that were asked before, 16 out.

With `--paced` the work grows with the cores instead: 85 streams a core, a step every 4 ms, so that no token waits for another
and nothing saturates. What a token then costs on many cores beside one is the efficiency of the fleet.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from loadtests import bench_client, report
from loadtests.bench_client import Load
from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet, vllm_front_ends
from loadtests.peers.front_ends import MAX_MODEL_LEN, SIM, printable_token_ids
from loadtests.peers.server import Server
from loadtests.processes import cpu_time, descendants
from loadtests.prompts import long_context_copy, write_english

LOG = Path("/tmp/tokenfleet-scale.log")
STREAMS_PER_CORE, PACE_MS = 85, 4.0
LONG_TOKENS, NUM_LONG, NUM_DISTINCT = 10_000, 1536, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--client-cores", type=int, default=6)
    parser.add_argument("--model", type=Path, help="folder with a tokenizer; default: the embedded model")
    parser.add_argument("--streams", type=int, default=1024)
    parser.add_argument("--engines", type=int, default=1, help="of tokenfleet; the mock is one")
    parser.add_argument("--paced", action="store_true", help="as many streams a core, at a pace")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    client = cores[-arguments.client_cores :]
    engine, front = cores[: arguments.engines], cores[arguments.engines : -arguments.client_cores]
    pin = ("taskset", "-c", ",".join(map(str, client)))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model_folder = arguments.model or embedded_model()
        model = str(long_context_copy(model_folder, Path(scratch) / "model", MAX_MODEL_LEN))
        token_ids, prompts = Path(scratch) / "token-ids.json", Path(scratch) / "long.jsonl"
        token_ids.write_text(json.dumps(printable_token_ids(model)))
        write_english(prompts, Path(model), LONG_TOKENS, NUM_LONG, NUM_DISTINCT)
        long = Load(LONG_TOKENS, 16, NUM_LONG, 64, dataset=prompts)
        for n in (n for n in arguments.cores if n <= len(front)):
            chat = Load(32, 512, 2 * arguments.streams, arguments.streams)
            if arguments.paced:
                streams = STREAMS_PER_CORE * n
                chat = Load(32, 512, 4 * streams, streams)
            for name, start in starters(
                n, model, token_ids, engines=arguments.engines, step_ms=PACE_MS if arguments.paced else 0.0
            ).items():
                with start() as server:
                    server.wait_ready(timeout_s=120)
                    give_cores(server, engine, front[:n])
                    bench_client.run(server, model, Load(32, 16, 256, 64), pin=pin)
                    rows.append([name, str(n), *measured(server, model, chat, n, pin)])
                    print(rows[-1], flush=True)
                    if arguments.paced:
                        continue
                    bench_client.run(
                        server, model, Load(LONG_TOKENS, 1, 2 * NUM_DISTINCT * n, 8, dataset=prompts), pin=pin
                    )
                    rows[-1] += measured(server, model, long, n, pin)
                    print(rows[-1], flush=True)
    text = render(rows)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def starters(n: int, model: str, token_ids: Path, *, engines: int, step_ms: float) -> dict[str, Callable[[], Server]]:
    flags = (*SIM, "--sim-step-ms", str(step_ms), "--engines", str(engines))
    return {
        "tokenfleet": lambda: tokenfleet.start(LOG, model=model, workers=n, flags=flags),
        "vllm-rs": lambda: vllm_front_ends.start_rust(
            LOG, model=model, token_ids=token_ids, step_ms=step_ms, env={"TOKIO_WORKER_THREADS": str(n)}
        ),
    }


def give_cores(server: Server, engine: Sequence[int], front: Iterable[int]) -> None:
    """Every thread of the engines to their cores, every other one of the server to the front end's."""
    front_pids = set(server.front_end_pids)
    for pid in [*server.pids, *server.beside]:
        for place in [pid, *(child for child in descendants(pid) if child != pid)]:
            cores = front if place in front_pids else engine
            for thread in Path(f"/proc/{place}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)


def measured(server: Server, model: str, load: Load, n: int, pin: tuple[str, ...]) -> list[str]:
    pids = server.front_end_pids
    before = cpu_time(pids)
    outcome = bench_client.run(server, model, load, seed=1, pin=pin)
    spent, took_s = cpu_time(pids) - before, outcome.duration_s
    rate = outcome.output_tokens_per_s if load.output_tokens > 16 else outcome.completed / took_s
    per = outcome.output_tokens if load.output_tokens > 16 else outcome.completed
    return [
        f"{rate:.0f}", f"{spent.total_s / per * 1e6:.1f}", f"{min(1.0, spent.total_s / took_s / n):.2f}",
        f"{outcome.ttft_p50_ms:.0f}, {outcome.ttft_p99_ms:.0f}", str(outcome.failed),
    ]  # fmt: skip


def render(rows: list[list[str]]) -> str:
    header = [
        "front end", "cores", "tok/s, 32 in 512 out", "CPU us a token", "busy", "TTFT p50, p99 ms", "failed",
        "req/s, 10k in 16 out", "CPU us a request", "busy", "TTFT p50, p99 ms", "failed",
    ]  # fmt: skip
    return f"# Throughput by cores\n\n{report.machine()}. `python -m loadtests.peers.scale`.\n\n" + report.table(
        header[: len(rows[0])], rows
    )


if __name__ == "__main__":
    main()
