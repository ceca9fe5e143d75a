"""Attention in plain torch: gathers each sequence's K/V and masks. Slow and obvious: the oracle of the parity tests."""

import torch
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, SingleTokens


def reference_attention(q: Tensor, kv: Tensor, pool: Tensor, metadata: AttentionMetadata) -> Tensor:
    """See AttentionBackend."""
    pool.index_copy_(0, metadata.slot_mapping, kv)
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    for index, token in enumerate(metadata.singles.tokens.tolist()):
        output[token] = _attend(q[token : token + 1], _gathered(pool, metadata.singles, index))[0]
    for span in metadata.spans:
        tokens = slice(span.first_token, span.first_token + span.num_new)
        context = [pool[run.first_slot : run.first_slot + run.length] for run in span.context]
        output[tokens] = _attend(q[tokens], torch.cat([*context, kv[tokens]]))
    return output.flatten(1)


def _gathered(pool: Tensor, singles: SingleTokens, index: int) -> Tensor:
    """All K/V of one sequence: (length, 2, num_kv_heads, head_dim)."""
    length, block_size = int(singles.lengths[index]), singles.block_size
    blocks = torch.from_numpy(singles.block_tables[index, : -(-length // block_size)]).to(pool.device)
    slots = (blocks.long()[:, None] * block_size + torch.arange(block_size, device=pool.device)).flatten()
    return pool[slots[:length]]


def _attend(q: Tensor, keys_values: Tensor) -> Tensor:
    """(num_new, num_heads, head_dim) in q's dtype, computed in float64; the new tokens' keys are the last ones."""
    wide = keys_values.double().repeat_interleave(q.shape[1] // keys_values.shape[2], dim=2)
    k, v = wide.unbind(1)  # (num_keys, num_heads, head_dim)
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * q.shape[2] ** -0.5
    positions = torch.arange(len(k), device=q.device)
    is_future = positions[None, :] > positions[len(k) - len(q) :, None]
    weights = scores.masked_fill(is_future, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
