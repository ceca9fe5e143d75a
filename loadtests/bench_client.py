"""The neutral load generator: `vllm-rs bench serve`, a client nobody here wrote (see peers/install.sh)."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.peers.server import MODEL_NAME, Server

VLLM_RS = Path(".peers/vllm-rs")


@dataclass(frozen=True)
class Load:
    """One workload: prompts of random tokens or of a file, every answer exactly `output_tokens` long."""

    input_tokens: int
    output_tokens: int
    num_requests: int
    concurrency: int
    backend: str = "openai-chat"
    dataset: Path | None = None  # prompts, one JSON object per line: see loadtests.prompts
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What the client saw."""

    completed: int
    failed: int
    duration_s: float
    output_tokens: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float

    @property
    def output_tokens_per_s(self) -> float:
        return self.output_tokens / self.duration_s


def run(server: Server, tokenizer: str, load: Load, *, seed: int = 0, pin: Sequence[str] = ()) -> Outcome:
    """Apply the load. `pin` is a command prefix such as ("taskset", "-c", "1"). Raises RuntimeError on a failed run."""
    if load.dataset is None:
        data = ["--dataset-name", "random", "--random-input-len", str(load.input_tokens)]
        data += ["--random-output-len", str(load.output_tokens)]
    else:
        data = ["--dataset-name", "custom", "--dataset-path", str(load.dataset)]
        data += ["--custom-output-len", str(load.output_tokens), "--disable-shuffle"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *pin, str(VLLM_RS), "bench", "serve", "--backend", load.backend, "--base-url", server.base_url,
            "--model", MODEL_NAME, "--tokenizer", tokenizer, *data,
            "--num-prompts", str(load.num_requests), "--max-concurrency", str(load.concurrency),
            "--ignore-eos", "--disable-tqdm", "--no-steady-state", "--seed", str(seed),
            "--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99",
            "--save-result", "--result-dir", folder, "--result-filename", "result.json", *load.flags,
        ]  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        result_path = Path(folder) / "result.json"
        if done.returncode or not result_path.exists():
            raise RuntimeError(f"bench client failed against {server.name}:\n{(done.stdout + done.stderr)[-3000:]}")
        result = json.loads(result_path.read_text())
    return Outcome(
        completed=result["completed"],
        failed=result.get("failed", 0),
        duration_s=result["duration"],
        output_tokens=result["total_output_tokens"],
        ttft_p50_ms=result["p50_ttft_ms"],
        ttft_p99_ms=result["p99_ttft_ms"],
        itl_p50_ms=result["p50_itl_ms"],
        itl_p99_ms=result["p99_itl_ms"],
    )
