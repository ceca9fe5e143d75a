"""flash-attn 2: the fallback for GPUs before Hopper. Pages of 256 tokens (a check of the package)."""

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata


class Fa2:
    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

        self._varlen, self._with_kvcache = flash_attn_varlen_func, flash_attn_with_kvcache

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """See triton_decode.paged_decode."""
        attended: Tensor = self._with_kvcache(
            q.unsqueeze(1), k, v, cache_seqlens=lengths, block_table=block_table, causal=True
        )
        return attended.squeeze(1) if out is None else out.copy_(attended.squeeze(1))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, out: Tensor) -> None:
        """Sequences with any number of new tokens, causal from the end."""
        cu_seqlens_k = torch.nn.functional.pad(metadata.lengths.cumsum(0, dtype=torch.int32), (1, 0))
        max_q = max(metadata.new_lens, default=1)
        max_k = metadata.block_table.shape[1] * k.shape[1]
        table = metadata.block_table
        out.copy_(
            self._varlen(q, k, v, metadata.cu_seqlens, cu_seqlens_k, max_q, max_k, causal=True, block_table=table)
        )
