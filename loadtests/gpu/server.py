"""The engine behind the whole server: HTTP, SSE, broker and rings, on one machine with the GPU.

    python -m loadtests.gpu.server TOKENIZER_FOLDER [--workers 6] [--load streams|cached] [--out FILE.md] [--profile FOLDER]

Random weights of the Qwen3-0.6B shape. TOKENIZER_FOLDER has a tokenizer.json, which is filled up with made-up words to the
shape's vocabulary, so that every random id is text. Two loads: 1024 concurrent streams of 32 in and 512 out, beside the
same requests in the engine alone; and prompts of 10 000 tokens that the prefix cache holds, 16 out. The client is
`vllm-rs bench serve` (loadtests/peers/install.sh). CPU seconds are given by process: whichever is busy all the time bounds the
rest; an engine's thread counts as busy while it waits for the device, which `--profile` tells apart: once more the cached
prompts, with a trace of 40 of the engine's steps (loadtests.gpu.trace reads it).
"""

import argparse
import json
import os
import random
import resource
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests import bench_client, report
from loadtests.bench_client import Load, Outcome
from loadtests.gpu import shapes
from loadtests.peers import tokenfleet
from loadtests.peers.server import Server
from loadtests.processes import cpu_time

SHAPE = "qwen3-0.6b"
STREAMS = Load(input_tokens=32, output_tokens=512, num_requests=3072, concurrency=1024, backend="openai")
CACHED_TOKENS, NUM_CACHED = 10_000, 16
STEPS_BEFORE, PROFILED_STEPS = 80, 40  # of some 240 that 4096 requests take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--client-cores", type=int, default=6)
    parser.add_argument("--load", choices=("streams", "cached"), help="only this one")
    parser.add_argument("--cached-requests", type=int, default=4096)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tokenfleet-shape"))
    parser.add_argument("--profile", type=Path, help="a folder for the engine's trace")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = write_folder(arguments.tokenizer, arguments.folder)
    cores = sorted(os.sched_getaffinity(0))
    for_client = cores[-arguments.client_cores :]
    os.sched_setaffinity(0, set(cores) - set(for_client))  # inherited by the server
    pin = ("taskset", "-c", ",".join(map(str, for_client)))
    flags: tuple[str, ...] = (
        "--load-format", "dummy", "--device", "cuda", "--max-num-seqs", "1024", "--max-num-batched-tokens", "16384",
        "--max-model-len", "16384", "--max-num-queued-tokens", "8388608",
    )  # fmt: skip
    if arguments.profile:
        flags = (*flags, "--torch-profiler-dir", str(arguments.profile.resolve()))
    log = Path("/tmp/tokenfleet-gpu-server.log")
    rows = []
    with tokenfleet.start(log, model=str(folder), workers=arguments.workers, flags=flags) as server:
        server.wait_ready(180)
        print(f"ready {time.monotonic() - server.started_at_s:.1f} s after its command", flush=True)
        warm = Load(32, 16, 256, 256, backend="openai")
        bench_client.run(server, str(folder), warm, pin=pin)
        if arguments.load != "cached":
            rows.append(measured(server, folder, STREAMS, "32 in / 512 out, 1024 streams", pin))
        if arguments.load != "streams":
            prompts = folder / "cached.jsonl"
            write_cached(prompts, folder)
            cached = Load(CACHED_TOKENS, 16, 64, 16, backend="openai", dataset=prompts)
            bench_client.run(server, str(folder), cached, pin=pin)  # fills the cache
            many = Load(CACHED_TOKENS, 16, arguments.cached_requests, 512, backend="openai", dataset=prompts)
            rows.append(measured(server, folder, many, f"{CACHED_TOKENS} cached in / 16 out, 512 at once", pin))
            if arguments.profile:
                profiled(server, lambda: bench_client.run(server, str(folder), many, seed=2, pin=pin))
    header = (
        "load",
        "req/s",
        "out tok/s",
        "TTFT p50, p99 ms",
        "ITL p50, p99 ms",
        "CPU s: front end",
        "of it busiest",
        "engine",
        "client",
        "failed",
    )
    text = f"{report.machine()}, {arguments.workers} workers\n\n" + report.table(header, rows)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def measured(server: Server, folder: Path, load: Load, name: str, pin: tuple[str, ...]) -> list[str]:
    front_end, engines = server.front_end_pids, server.pids
    engines = [pid for pid in engines if pid not in front_end]
    before = [cpu_time([pid]).total_s for pid in front_end], cpu_time(engines).total_s, children_s()
    outcome: Outcome = bench_client.run(server, str(folder), load, seed=1, pin=pin)
    client_s, engine_s = children_s() - before[2], cpu_time(engines).total_s - before[1]
    by_process = [cpu_time([pid]).total_s - then for pid, then in zip(front_end, before[0], strict=True)]
    row = [
        name, f"{outcome.completed / outcome.duration_s:.0f}", f"{outcome.output_tokens_per_s:.0f}",
        f"{outcome.ttft_p50_ms:.0f}, {outcome.ttft_p99_ms:.0f}", f"{outcome.itl_p50_ms:.1f}, {outcome.itl_p99_ms:.1f}",
        f"{sum(by_process):.1f}", f"{max(by_process):.1f} of {outcome.duration_s:.1f} s",
        f"{engine_s:.1f}", f"{client_s:.1f}", str(outcome.failed),
    ]  # fmt: skip
    print(row, flush=True)
    return row


def children_s() -> float:
    """CPU time of this process's children that have ended: the client's, while the server lives."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def profiled(server: Server, work: Callable[[], object]) -> None:
    """The work again, in whose middle some steps of the engine are traced."""
    options = {"profile_prefix": "cached", "delay_iterations": STEPS_BEFORE, "max_iterations": PROFILED_STEPS}
    post(server, "/start_profile", options)
    work()
    post(server, "/stop_profile", {})


def post(server: Server, path: str, body: dict[str, Any]) -> None:  # Any: JSON
    request = urllib.request.Request(server.base_url + path, json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()


def write_folder(tokenizer: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    taken = len(vocab) + len([t for t in content["added_tokens"] if t["content"] not in vocab])
    for number in range(taken, shapes.SHAPES[SHAPE]["vocab_size"]):
        vocab[f"Ġw{number}"] = number
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(shapes.SHAPES[SHAPE]))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def write_cached(path: Path, folder: Path) -> None:
    """A few long prompts, which the client asks again and again."""
    from tokenizers import Tokenizer

    tokenizer, source = Tokenizer.from_file(str(folder / "tokenizer.json")), random.Random(0)
    with path.open("w") as file:
        for _ in range(NUM_CACHED):
            prompt = tokenizer.decode([source.randrange(1000, 40_000) for _ in range(CACHED_TOKENS)])
            file.write(json.dumps({"prompt": prompt, "output_tokens": 16}) + "\n")


if __name__ == "__main__":
    main()
