"""From the qkv projection to attention: per-head norms and rotation, in plain torch or in one GPU kernel.

Two forms of one contract: `(heads, cos, sin, pool, slots) -> q, kv`. The plain one leaves storing K/V to the attention
backend, the fused one has stored it already, and its `kv` is what attention must not read.
"""

from typing import Protocol

from torch import Tensor

from engine_core.layers.norm import RmsNorm
from engine_core.layers.rotary import rotate_


class PrepareHeads(Protocol):
    def __call__(self, heads: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """heads (num_tokens, num_heads + 2 * num_kv_heads, head_dim): q, k and v, overwritten →
        q (num_tokens, num_heads, head_dim) and kv (num_tokens, 2, num_kv_heads, head_dim)."""
        ...


class PrepareHeadsFactory(Protocol):
    def __call__(self, num_heads: int, norms: tuple[RmsNorm, RmsNorm] | None) -> PrepareHeads: ...


class PlainHeads:
    def __init__(self, num_heads: int, norms: tuple[RmsNorm, RmsNorm] | None) -> None:
        self._num_heads, self._norms = num_heads, norms

    def __call__(self, heads: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        num_heads, num_kv_heads = self._num_heads, (heads.shape[1] - self._num_heads) // 2
        num_rotated = num_heads + num_kv_heads
        q, k = heads[:, :num_heads], heads[:, num_heads:num_rotated]
        if self._norms is not None:
            q_norm, k_norm = self._norms
            q.copy_(q_norm(q))
            k.copy_(k_norm(k))
        rotate_(heads[:, :num_rotated], cos, sin)
        return q, heads[:, num_heads:].view(len(heads), 2, num_kv_heads, heads.shape[2])


class FusedHeads:
    """CUDA only."""

    def __init__(self, num_heads: int, norms: tuple[RmsNorm, RmsNorm] | None) -> None:
        self._num_heads = num_heads
        self._norms = None if norms is None else (norms[0].weight, norms[1].weight, norms[0].eps)

    def __call__(self, heads: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        from engine_core.layers.triton_heads import rotate_and_store

        num_kv_heads = (heads.shape[1] - self._num_heads) // 2
        kv = heads[:, self._num_heads :].view(len(heads), 2, num_kv_heads, heads.shape[2])
        return rotate_and_store(heads, self._norms, cos, sin, pool, slots), kv
