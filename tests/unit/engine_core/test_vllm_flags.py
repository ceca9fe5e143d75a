"""What a vLLM that is started here is told of the fleet's settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import EngineSettings, ModelSettings, Settings
from engine_core.vllm import process

MODEL = ModelFolder(
    path="/models/x", architecture="X", vocab_size=50, max_model_len=64, eos_token_ids=(5,), bos_token_id=None,
    served_names=("m",), chat_template=None, sampling_defaults=SamplingDefaults(), hf_config={},
)  # fmt: skip


class Link:
    handshake_endpoint = "tcp://127.0.0.1:29550"


def flags_of(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> list[str]:
    """Those that `vllm serve` would be started with."""
    flags: list[str] = []

    def started(_python: str, _model: str | Path, _port: int, given: Sequence[str], *_more: Any) -> None:
        flags.extend(given)

    monkeypatch.setattr(process, "HeadlessServer", started)
    link: Any = Link()
    process._started(settings, MODEL, link)
    return flags


def test_vllm_keeps_its_own_defaults_of_what_nobody_set(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = flags_of(monkeypatch, Settings(engine=EngineSettings(engine="vllm", vllm_python="python")))

    for name in (*process.PASSED_ON, "load_format"):
        assert not any(flag.startswith(f"--{name.replace('_', '-')}") for flag in flags)


def test_vllm_is_told_what_the_operator_set_and_what_stands_behind_the_dashes_comes_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(
        model=ModelSettings(load_format="dummy"),
        engine=EngineSettings(
            engine="vllm",
            vllm_python="python",
            max_num_batched_tokens=4096,
            kv_cache_memory_bytes=1 << 30,
            num_gpu_blocks_override=512,
            vllm_args=("--max-num-batched-tokens=8192",),
        ),
    )

    flags = flags_of(monkeypatch, settings)

    assert flags[-5:] == [
        "--max-num-batched-tokens=4096",
        "--kv-cache-memory-bytes=1073741824",
        "--num-gpu-blocks-override=512",
        "--load-format=dummy",
        "--max-num-batched-tokens=8192",
    ]
