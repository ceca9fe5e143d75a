"""Weights by name, in the dtype and on the device asked for: from safetensors, or random for benchmarks.

A model takes each tensor it needs with the shape it must have; what is missing, misshapen or left over is one CannotBoot
that names it. Files are memory-mapped: a tensor that already has the right dtype is not copied before it is used.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from engine_core.errors import CannotBoot

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Weights(Protocol):
    """Where a model takes its tensors from."""

    def has(self, name: str) -> bool: ...

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor in the model's dtype on its device. Raises CannotBoot."""
        ...

    def finish(self) -> None:
        """Called when the model is complete. Raises CannotBoot when tensors were left over."""
        ...


class Checkpoint:
    """The safetensors files of a model folder."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self._file_of = _find_tensors(folder)
        self._files = {file: _open(folder / file) for file in sorted(set(self._file_of.values()))}
        self._progress = progress
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self._file_of:
            raise CannotBoot(f"{self._folder.name} has no tensor {name}: do its weights belong to this config.json?")
        try:
            tensor: torch.Tensor = self._files[self._file_of[name]].get_tensor(name)
        except SafetensorError as error:
            raise CannotBoot(f"{self._folder.name}: tensor {name} cannot be read: {error}") from None
        if tuple(tensor.shape) != shape:
            raise CannotBoot(f"{self._folder.name}: tensor {name} has shape {list(tensor.shape)}, not {list(shape)}")
        self._taken.add(name)
        if self._progress is not None:
            self._progress(len(self._taken), len(self._file_of))
        return tensor.to(device=self._device, dtype=self._dtype)

    def finish(self) -> None:
        left = sorted(self._file_of.keys() - self._taken)
        left = [name for name in left if not name.endswith("rotary_emb.inv_freq")]  # some exporters store a constant
        if left:
            raise CannotBoot(f"{self._folder.name} holds {len(left)} tensors the model does not have, e.g. {left[0]}")


class DummyWeights:
    """Random weights of the right shapes; the same ones every time."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator(device).manual_seed(0)

    def has(self, name: str) -> bool:
        return name != "lm_head.weight"

    def take(self, name: str, *shape: int) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        return tensor.normal_(0.0, 0.02, generator=self._generator)

    def finish(self) -> None:
        pass


def _find_tensors(folder: Path) -> dict[str, str]:
    """Tensor name → file name."""
    if (folder / INDEX_FILE).is_file():
        try:
            weight_map: dict[str, str] = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError):
            raise CannotBoot(f"{folder / INDEX_FILE} is not a safetensors index") from None
        return weight_map
    if not (folder / SINGLE_FILE).is_file():
        raise CannotBoot(f"{folder} has no {SINGLE_FILE} and no {INDEX_FILE}: only safetensors weights are read")
    return dict.fromkeys(_open(folder / SINGLE_FILE).keys(), SINGLE_FILE)


def _open(path: Path) -> Any:  # Any: safe_open is untyped
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CannotBoot(f"{path} is missing, but the index names it") from None
    except (SafetensorError, OSError) as error:
        raise CannotBoot(f"{path} is not a whole safetensors file ({error}): was the download interrupted?") from None
