"""Front ends of vLLM's engine cores, each before an engine of its own: vLLM's Rust one and its Python one, and the fleet with
its bridge. The engine is the mock, which has no model, or a real one on the CPU."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.bench_client import VLLM_RS
from loadtests.peers.server import MODEL_NAME, Server, free_port
from loadtests.peers.vllm_python import VLLM

STOP_ENGINE_S = 20.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "NO_COLOR": "1"}


class FrontEnd(Server):
    """A front end of vLLM's and the engine beside it; they find each other over a handshake port."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        log_path: Path,
        engine: Sequence[str],
        env: Mapping[str, str] = {},
    ) -> None:
        """`engine` is its command."""
        super().__init__(name, command, port, log_path, {**OFFLINE, **env})
        with log_path.with_suffix(".engine.log").open("wb") as log:
            self._engine = subprocess.Popen(
                engine, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **OFFLINE}, process_group=0
            )

    @property
    def beside(self) -> list[int]:
        return [self._engine.pid]

    def stop(self) -> None:
        super().stop()
        self._engine.terminate()
        try:
            self._engine.wait(STOP_ENGINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._engine.pid, signal.SIGKILL)
            self._engine.wait()


class BridgedFleet(FrontEnd):
    """The bridge is part of what it costs."""

    @property
    def front_end_pids(self) -> list[int]:
        return self.pids


def mock_engine(handshake_port: int, *, token_ids: Path, step_ms: float, flags: Sequence[str] = ()) -> list[str]:
    return [
        sys.executable, "-m", "loadtests.peers.vllm_mock_engine", "--handshake", f"tcp://127.0.0.1:{handshake_port}",
        "--step-ms", str(step_ms), "--token-ids", str(token_ids), *flags,
    ]  # fmt: skip


def real_engine(handshake_port: int, *, model: str, core: int, flags: Sequence[str] = ()) -> list[str]:
    """vLLM 0.32.0 on a core of its own."""
    pinned = ["env", f"VLLM_CPU_OMP_THREADS_BIND={core}", "taskset", "-c", str(core)]
    return [*pinned, *headless([str(VLLM)], model, handshake_port, flags=("--enforce-eager", *flags))]


def headless(vllm: Sequence[str], model: str, handshake_port: int, *, flags: Sequence[str] = ()) -> list[str]:
    """vLLM without its API server."""
    return [
        *vllm, "serve", model, "--headless", "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port",
        str(handshake_port), *flags,
    ]  # fmt: skip


def fleet_command(model: str, port: int, handshake_port: int, *, workers: int, flags: Sequence[str] = ()) -> list[str]:
    """tokenfleet with --engine vllm."""
    return [
        sys.executable, "-m", "ops", "serve", model, "--port", str(port), "--ops-port", "0", "--workers", str(workers),
        "--served-model-name", MODEL_NAME, "--max-num-seqs", "4096", "--engine", "vllm",
        "--vllm-handshake", f"tcp://127.0.0.1:{handshake_port}", "--log-level", "warning", *flags,
    ]  # fmt: skip


def rust_command(model: str, port: int, handshake_port: int, *, binary: Path = VLLM_RS) -> list[str]:
    return [
        str(binary), "serve", model, "--served-model-name", MODEL_NAME, "--data-parallel-size", "1",
        "--data-parallel-size-local", "0", "--data-parallel-rpc-port", str(handshake_port),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def python_command(
    model: str, port: int, handshake_port: int, *, vllm: Sequence[str] = (str(VLLM),), flags: Sequence[str] = ()
) -> list[str]:
    """One process, as `vllm serve` starts it by default, but for a log line per request, which the others do not write."""
    return [
        *vllm, "serve", model, "--served-model-name", MODEL_NAME, "--data-parallel-size-local", "0",
        "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(handshake_port),
        "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *flags,
    ]  # fmt: skip


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
    """Before the mock engine, as its siblings."""
    port, handshake_port = free_port(), free_port()
    return BridgedFleet(
        "tokenfleet, engine vllm", fleet_command(model, port, handshake_port, workers=workers, flags=flags),
        port=port, log_path=log_path,
        engine=mock_engine(handshake_port, token_ids=token_ids, step_ms=step_ms, flags=engine_flags),
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
    return FrontEnd(
        "vllm-rs 0.33.0", rust_command(model, port, handshake_port), port=port, log_path=log_path, env=env,
        engine=mock_engine(handshake_port, token_ids=token_ids, step_ms=step_ms, flags=engine_flags),
    )  # fmt: skip


def start_python(log_path: Path, *, model: str, token_ids: Path, step_ms: float) -> Server:
    """vLLM's Python API server 0.32.0."""
    port, handshake_port = free_port(), free_port()
    return FrontEnd(
        "vLLM Python 0.32.0", python_command(model, port, handshake_port), port=port, log_path=log_path,
        engine=mock_engine(
            handshake_port, token_ids=token_ids, step_ms=step_ms, flags=("--version", "0.32.0+cpu")
        ),
    )  # fmt: skip
