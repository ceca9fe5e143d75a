"""tokenfleet itself, started as a user starts it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.peers.server import MODEL_NAME, Server, free_port


def start(log_path: Path, *, model: str | None = None, workers: int = 1, flags: Sequence[str] = ()) -> Server:
    """`tokenfleet serve` from this checkout and interpreter. `model` None: the embedded one."""
    port = free_port()
    command = [
        sys.executable, "-m", "ops", "serve", *([model] if model else []),
        "--port", str(port), "--ops-port", "0", "--workers", str(workers), "--served-model-name", MODEL_NAME, *flags,
    ]  # fmt: skip
    return Server("tokenfleet", command, port, log_path, env={})
