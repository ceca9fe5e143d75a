"""Rotary position embedding (Su et al. 2021) in the split-halves form of Hugging Face's Llama.

Scaling kinds: none, linear, and llama3 (https://github.com/meta-llama/llama-models, as in transformers' modeling_rope_utils).
"""

import math
from typing import Any

import torch
from torch import Tensor

from engine_core.errors import CannotBoot


class Rotary:
    """Tables of cos and signed sin for every position; a step gathers its rows once and all layers share them."""

    def __init__(
        self, head_dim: int, max_len: int, hf_config: dict[str, Any], dtype: torch.dtype, device: torch.device
    ):
        frequencies = _inverse_frequencies(head_dim, hf_config)
        angles = torch.outer(torch.arange(max_len, dtype=torch.float32), frequencies)
        # (max_len, 1, head_dim); the second half rolled onto the first has its sign in the sine
        self._cos = torch.cat((angles.cos(), angles.cos()), dim=-1).unsqueeze(1).to(device, dtype)
        self._sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).unsqueeze(1).to(device, dtype)

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for (num_tokens,) positions: two of (num_tokens, 1, head_dim)."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate (num_tokens, num_heads, head_dim) in place; it may be a view into a wider buffer."""
    rolled = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(cos).addcmul_(rolled, sin)


def _inverse_frequencies(head_dim: int, hf_config: dict[str, Any]) -> Tensor:
    parameters = hf_config.get("rope_parameters") or {}
    theta = float(parameters.get("rope_theta") or hf_config.get("rope_theta") or 10000.0)
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    scaling = hf_config.get("rope_scaling") or parameters
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise CannotBoot(f"rope scaling of type '{kind}' is not supported (supported: default, linear, llama3)")


def _llama3(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, the band between interpolated."""
    factor, original_len = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    wavelengths = 2 * math.pi / frequencies
    smooth = (original_len / wavelengths - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(wavelengths > original_len / low, frequencies / factor, frequencies)
    is_between = (wavelengths <= original_len / low) & (wavelengths >= original_len / high)
    return torch.where(is_between, between, stretched)
