"""The attention of a GPU engine: which kernel a step of which shape goes to.

flash-attn-4 has no split-KV on Hopper: measured on an H100, Qwen3-0.6B shape, batch 1 at 4k context, 48 us against 15.
"""

from typing import Protocol

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata, SharedPrefixes
from engine_core.attention.choice import Name

FILLS_THE_GPU = 64  # batch x K/V heads from which splitting keys no longer pays


class Kernels(Protocol):
    """k and v are (num_blocks, page, num_kv_heads, head_dim)."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor) -> Tensor: ...
    def mixed(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata) -> Tensor: ...


class CudaAttention:
    """engine_core.attention.base.AttentionBackend over a pool whose K and V are planes; the step's K/V is stored already."""

    def __init__(self, name: Name, block_size: int) -> None:
        self._name, self._block_size = name, block_size
        self._kernels = _kernels(name)

    def __call__(self, q: Tensor, kv: Tensor, pool: Tensor, metadata: CudaMetadata) -> Tensor:
        from engine_core.attention.triton_decode import paged_decode  # Triton: not there on every CPU machine

        pages = pool.view(-1, self._block_size, *pool.shape[1:])
        k, v = pages[:, :, 0], pages[:, :, 1]
        if metadata.shared is not None:
            return self._with_shared_prefixes(q, k, v, metadata, metadata.shared).flatten(1)
        if metadata.num_decodes < len(metadata.lengths):
            return self._kernels.mixed(q, k, v, metadata).flatten(1)
        fills = len(q) * pool.shape[2] >= FILLS_THE_GPU and q.shape[2] >= 128
        decode = self._kernels.decode if fills or self._name == "fa2" else paged_decode
        return decode(q, k, v, metadata.block_table, metadata.lengths).flatten(1)

    def _with_shared_prefixes(
        self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, shared: SharedPrefixes
    ) -> Tensor:
        from engine_core.attention.triton_shared_prefix import shared_prefix_decode

        n = metadata.num_decodes
        decoded = shared_prefix_decode(q[:n], k, v, metadata.block_table[:n], metadata.lengths[:n], shared)
        if metadata.behind is None:
            return decoded
        return torch.cat((decoded, self._kernels.mixed(q[n:], k, v, metadata.behind)))


def _kernels(name: Name) -> Kernels:
    if name == "fa4":
        from engine_core.attention.fa4 import Fa4

        return Fa4()
    if name == "fa2":
        from engine_core.attention.fa2 import Fa2

        return Fa2()
    from engine_core.attention.sdpa_prefill import SdpaPrefill

    return SdpaPrefill()
