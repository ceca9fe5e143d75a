"""Weights by name: dtypes, several files, and one line for each way a checkpoint can be wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine_core.errors import CannotBoot
from engine_core.loader import Checkpoint, DummyWeights

CPU = torch.device("cpu")


def checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return Checkpoint(folder, dtype, CPU)


def test_tensors_come_in_the_dtype_asked_for(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "model.safetensors")

    taken = checkpoint(tmp_path, torch.bfloat16).take("a", 2, 3)

    assert taken.dtype == torch.bfloat16
    assert taken.float().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_index_joins_several_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    weights = checkpoint(tmp_path)

    assert weights.take("b", 2).tolist() == [1, 1]
    assert weights.has("a") and not weights.has("c")


@pytest.mark.parametrize("fault", ["no file", "truncated", "not safetensors", "missing part", "bad index"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "model.safetensors"
    if fault == "truncated":
        save_file({"a": torch.ones(1000)}, file)
        file.write_bytes(file.read_bytes()[:2000])
    elif fault == "not safetensors":
        file.write_bytes(b"hello")
    elif fault == "missing part":
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    elif fault == "bad index":
        (tmp_path / "model.safetensors.index.json").write_text("[]")

    with pytest.raises(CannotBoot) as caught:
        checkpoint(tmp_path)

    assert "\n" not in str(caught.value)


def test_missing_misshapen_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2), "extra": torch.ones(1)}, tmp_path / "model.safetensors")
    weights = checkpoint(tmp_path)

    with pytest.raises(CannotBoot, match="no tensor b"):
        weights.take("b", 2)
    with pytest.raises(CannotBoot, match=r"shape \[2, 2\], not \[3, 2\]"):
        weights.take("a", 3, 2)
    weights.take("a", 2, 2)
    with pytest.raises(CannotBoot, match="extra"):
        weights.finish()


def test_dummy_weights_are_the_same_every_time() -> None:
    first, second = (DummyWeights(torch.float32, CPU).take("layer.weight", 4, 4) for _ in range(2))

    assert torch.equal(first, second)
    assert DummyWeights(torch.float32, CPU).take("final_norm.weight", 3).tolist() == [1, 1, 1]
