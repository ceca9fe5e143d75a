"""Prefill without any flash-attn package: torch's attention over K/V gathered from the pages, a sequence at a time."""

import torch
from torch import Tensor

from engine_core.attention.base import CudaMetadata
from engine_core.attention.triton_decode import paged_decode


class SdpaPrefill:
    """Single tokens go through the Triton kernel. Correct; slow for long prompts."""

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor | None = None
    ) -> Tensor:
        return paged_decode(q, k, v, block_table, lengths, out)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, metadata: CudaMetadata, out: Tensor) -> None:
        num_decodes = metadata.num_decodes
        if num_decodes:
            table, lengths = metadata.block_table[:num_decodes], metadata.lengths[:num_decodes]
            paged_decode(q[:num_decodes], k, v, table, lengths, out[:num_decodes])
        first = num_decodes
        for entry, (new, total) in enumerate(zip(metadata.new_lens, metadata.total_lens, strict=True), num_decodes):
            blocks = metadata.block_table[entry, : -(-total // k.shape[1])].long()
            keys, values = (part[blocks].flatten(0, 1)[:total] for part in (k, v))
            out[first : first + new] = _attend(q[first : first + new], keys, values)
            first += new


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(new, num_heads, head_dim) to (total, num_kv_heads, head_dim); the new tokens are the last ones."""
    group = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(group, dim=1).transpose(0, 1) for part in (k, v))
    is_past = torch.ones((len(q), k.shape[1]), dtype=torch.bool, device=q.device).tril(k.shape[1] - len(q))
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=is_past).transpose(0, 1)
