"""The block size follows the GPU only where nobody has chosen one."""

from typing import Any

import pytest

from config.load import load
from ops import gpu_defaults
from ops.gpu_defaults import with_gpu_defaults


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on an H100 without flash-attn; notes every question to the driver."""
    questions: list[int] = []

    def capability() -> tuple[int, int]:
        questions.append(1)
        return (9, 0)

    monkeypatch.setattr(gpu_defaults, "compute_capability", capability)
    return questions


def resolved(**flags: Any) -> tuple[int, str]:
    configuration = with_gpu_defaults(load(flags, {}))
    return configuration.settings.engine.block_size, configuration.origins["block_size"]


def test_the_backend_decides_where_the_operator_has_not(asked: list[int]) -> None:
    assert resolved(attention_backend="triton") == (64, "attention backend")


def test_the_operators_choice_stands(asked: list[int]) -> None:
    assert resolved(block_size="32") == (32, "--block-size")
    assert not asked


def test_the_driver_is_not_asked_where_no_gpu_computes(asked: list[int]) -> None:
    assert resolved(device="cpu") == (16, "default")
    assert resolved(engine="sim") == (16, "default")
    assert not asked


def test_a_machine_without_a_gpu_keeps_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_defaults, "compute_capability", lambda: None)

    assert resolved() == (16, "default")
