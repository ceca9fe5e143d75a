"""tokenfleet against vLLM with the same weights on the CPU: tokens per second, time to the first answer, memory.

    loadtests/peers/install.sh
    python -m loadtests.peers.real_engine [--rounds 3] [--out loadtests/results/real_engine.md]

Both serve the same bf16 safetensors folder (the converted default model), the same client loads both, in alternating
rounds, one server up at a time. The time to the first answer runs from the start of the command to the end of a
one-token chat. Memory is read right after the heaviest load, over all processes of the server.
"""

import argparse
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import bench_client, report
from loadtests.bench_client import Load
from loadtests.embedded_model import embedded_model
from loadtests.peers import tokenfleet, vllm_python
from loadtests.peers.server import MODEL_NAME, Server
from loadtests.processes import memory

ONE = Load(input_tokens=64, output_tokens=64, num_requests=8, concurrency=1)
SIXTEEN = Load(input_tokens=64, output_tokens=64, num_requests=64, concurrency=16)


@dataclass
class Figures:
    """One value per round."""

    first_answer_s: list[float] = field(default_factory=list)
    tokens_per_s_at_1: list[float] = field(default_factory=list)
    tokens_per_s_at_16: list[float] = field(default_factory=list)
    ttft_p50_ms_at_16: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("loadtests/results/real_engine.md"))
    arguments = parser.parse_args()
    model = str(embedded_model())
    log = Path("/tmp/tokenfleet-peer.log")
    starters: dict[str, Callable[[], Server]] = {
        "tokenfleet": lambda: tokenfleet.start(log, model=model),
        "vLLM 0.32.0 (CPU)": lambda: vllm_python.start(log, model=model),
    }
    figures = {name: Figures() for name in starters}
    for round_number in range(arguments.rounds):
        for name, start in starters.items():
            with start() as server:
                measure(server, model, figures[name], seed=round_number)
            print(name, figures[name], flush=True)
    text = render(figures)
    arguments.out.write_text(text)
    print(text)


def measure(server: Server, tokenizer: str, figures: Figures, seed: int) -> None:
    """One server's part of one round."""
    server.wait_ready(timeout_s=300)
    one_token_chat(server)
    figures.first_answer_s.append(time.monotonic() - server.started_at_s)
    bench_client.run(server, tokenizer, Load(64, 16, num_requests=16, concurrency=16), seed=1000 + seed)  # warm
    figures.tokens_per_s_at_1.append(bench_client.run(server, tokenizer, ONE, seed=seed).output_tokens_per_s)
    outcome = bench_client.run(server, tokenizer, SIXTEEN, seed=100 + seed)
    figures.tokens_per_s_at_16.append(outcome.output_tokens_per_s)
    figures.ttft_p50_ms_at_16.append(outcome.ttft_p50_ms)
    used = memory(server.pids)
    figures.rss_mb.append(used.rss_mb)
    figures.pss_mb.append(used.pss_mb)


def one_token_chat(server: Server) -> None:
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    request = urllib.request.Request(
        server.base_url + "/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        json.load(response)


def render(figures: dict[str, Figures]) -> str:
    header = ["server", "tok/s at 1", "tok/s at 16", "TTFT p50 at 16, ms", "first answer, s", "RSS, MB", "PSS, MB"]
    rows = [
        [
            name,
            report.spread(f.tokens_per_s_at_1),
            report.spread(f.tokens_per_s_at_16),
            report.spread(f.ttft_p50_ms_at_16, 0),
            report.spread(f.first_answer_s),
            report.spread(f.rss_mb, 0),
            report.spread(f.pss_mb, 0),
        ]
        for name, f in figures.items()
    ]
    return (
        "# The same weights on the same CPU: tokenfleet and vLLM\n\n"
        f"{report.machine()}. SmolLM2-135M-Instruct, bf16, 64 tokens in, 64 out, random prompts, client "
        "`vllm-rs bench serve` 0.33.0 on the same cores; median and range over alternating rounds. Command: "
        "`python -m loadtests.peers.real_engine`.\n\n" + report.table(header, rows)
    )


if __name__ == "__main__":
    main()
