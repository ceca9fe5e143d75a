"""The attention of a GPU engine: which kernel a step of which shape goes to.

flash-attn-4 has no split-KV on Hopper: measured on an H100, Qwen3-0.6B shape, batch 1 at 4k context, 48 us against 15.
"""

from typing import Protocol

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from engine_core.attention.choice import Name

FILLS_THE_GPU = 64  # batch x K/V heads from which splitting keys no longer pays


class Kernels(Protocol):
    """k and v are (num_blocks, page, num_kv_heads, head_dim); `out` is like q."""

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor | None = None
    ) -> Tensor: ...
    def mixed(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, out: Tensor) -> None: ...


class CudaAttention:
    """engine_core.attention.base.AttentionBackend over a pool whose K and V are planes; the step's K/V is stored already."""

    def __init__(self, name: Name, block_size: int) -> None:
        self._name, self._block_size = name, block_size
        self._kernels = _kernels(name)

    def __call__(self, q: Tensor, kv: Tensor, pool: Tensor, metadata: CudaMetadata) -> Tensor:
        if metadata.num_decodes == len(metadata.lengths):
            return self._decode(q, *self._pages(pool), metadata).flatten(1)
        out = torch.empty_like(q)
        self.mixed(q, pool, metadata, out)
        return out.flatten(1)

    def mixed(self, q: Tensor, pool: Tensor, metadata: CudaMetadata, out: Tensor) -> None:
        """A step with prefill; `out` is like q and contiguous."""
        k, v = self._pages(pool)
        if metadata.behind is None:
            self._kernels.mixed(q, k, v, metadata, out)
            return
        n = metadata.num_decodes
        self._decode(q[:n], k, v, metadata, out[:n])
        self._kernels.mixed(q[n:], k, v, metadata.behind, out[n:])

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, out: Tensor | None = None) -> Tensor:
        """Of the decodes alone."""
        from engine_core.attention.triton_decode import paged_decode  # Triton: not there on every CPU machine
        from engine_core.attention.triton_shared_prefix import shared_prefix_decode

        table, lengths = metadata.block_table[: len(q)], metadata.lengths[: len(q)]
        if metadata.shared is not None:
            return shared_prefix_decode(q, k, v, table, lengths, metadata.shared, out)
        fills = len(q) * k.shape[2] >= FILLS_THE_GPU and q.shape[2] >= 128
        decode = self._kernels.decode if fills or self._name == "fa2" else paged_decode
        return decode(q, k, v, table, lengths, out)

    def _pages(self, pool: Tensor) -> tuple[Tensor, Tensor]:
        pages = pool.view(-1, self._block_size, *pool.shape[1:])
        return pages[:, :, 0], pages[:, :, 1]


def _kernels(name: Name) -> Kernels:
    if name == "fa4":
        from engine_core.attention.fa4 import Fa4

        return Fa4()
    if name == "fa2":
        from engine_core.attention.fa2 import Fa2

        return Fa2()
    from engine_core.attention.sdpa_prefill import SdpaPrefill

    return SdpaPrefill()
