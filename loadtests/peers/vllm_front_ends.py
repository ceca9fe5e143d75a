"""Front ends of vLLM's engine cores without a model, each behind the mock engine: vLLM's Rust one and its Python one, and the
fleet with its bridge."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.bench_client import VLLM_RS
from loadtests.peers.server import MODEL_NAME, Server, free_port
from loadtests.peers.vllm_python import VLLM


class FrontEnd(Server):
    """A front end of vLLM's and the mock engine beside it; they find each other over a handshake port."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        handshake_port: int,
        port: int,
        log_path: Path,
        env: Mapping[str, str],
        step_ms: float,
        token_ids: Path,
        engine_flags: Sequence[str] = (),
    ) -> None:
        super().__init__(name, command, port, log_path, {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **env})
        engine = [
            sys.executable, "-m", "loadtests.peers.vllm_mock_engine", "--handshake",
            f"tcp://127.0.0.1:{handshake_port}", "--step-ms", str(step_ms), "--token-ids", str(token_ids),
            *engine_flags,
        ]  # fmt: skip
        with log_path.with_suffix(".engine.log").open("wb") as log:
            self._engine = subprocess.Popen(engine, stdout=log, stderr=subprocess.STDOUT)

    @property
    def beside(self) -> list[int]:
        return [self._engine.pid]

    def stop(self) -> None:
        super().stop()
        if self._engine.poll() is None:
            self._engine.send_signal(signal.SIGKILL)
        self._engine.wait()


class BridgedFleet(FrontEnd):
    """The bridge is part of what it costs."""

    @property
    def front_end_pids(self) -> list[int]:
        return self.pids


def start_bridged(
    log_path: Path,
    *,
    model: str,
    token_ids: Path,
    step_ms: float,
    workers: int,
    flags: Sequence[str] = (),
    engine_flags: Sequence[str] = (),
) -> Server:
    """tokenfleet with --engine vllm."""
    port, handshake_port = free_port(), free_port()
    command = [
        sys.executable, "-m", "ops", "serve", model, "--port", str(port), "--ops-port", "0", "--workers", str(workers),
        "--served-model-name", MODEL_NAME, "--max-num-seqs", "4096", "--engine", "vllm",
        "--vllm-handshake", f"tcp://127.0.0.1:{handshake_port}", *flags,
    ]  # fmt: skip
    return BridgedFleet(
        "tokenfleet, engine vllm", command, handshake_port=handshake_port, port=port, log_path=log_path, env={},
        step_ms=step_ms, token_ids=token_ids, engine_flags=engine_flags,
    )  # fmt: skip


def start_rust(
    log_path: Path,
    *,
    model: str,
    token_ids: Path,
    step_ms: float,
    env: Mapping[str, str] = {},
    engine_flags: Sequence[str] = (),
) -> Server:
    """`vllm-rs serve` of vLLM 0.33.0."""
    port, handshake_port = free_port(), free_port()
    command = [
        str(VLLM_RS), "serve", model, "--served-model-name", MODEL_NAME, "--data-parallel-size", "1",
        "--data-parallel-size-local", "0", "--data-parallel-rpc-port", str(handshake_port),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    return FrontEnd(
        "vllm-rs 0.33.0", command, handshake_port=handshake_port, port=port, log_path=log_path, env=env,
        step_ms=step_ms, token_ids=token_ids, engine_flags=engine_flags,
    )  # fmt: skip


def start_python(log_path: Path, *, model: str, token_ids: Path, step_ms: float) -> Server:
    """vLLM's Python API server 0.32.0, one process, as `vllm serve` starts it by default."""
    port, handshake_port = free_port(), free_port()
    command = [
        str(VLLM), "serve", model, "--served-model-name", MODEL_NAME, "--data-parallel-size-local", "0",
        "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(handshake_port),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return FrontEnd(
        "vLLM Python 0.32.0", command, handshake_port=handshake_port, port=port, log_path=log_path, env=env,
        step_ms=step_ms, token_ids=token_ids,
    )  # fmt: skip
