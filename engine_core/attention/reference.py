"""Attention in plain torch: gathers each sequence's K/V and masks. Slow and obvious: the oracle of the parity tests."""

import torch
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, SequenceSpan


def reference_attention(q: Tensor, kv: Tensor, pool: Tensor, metadata: AttentionMetadata) -> Tensor:
    """See AttentionBackend."""
    pool.index_copy_(0, metadata.slot_mapping, kv)
    parts = [_attend(q, kv, pool, span) for span in metadata.spans]
    return torch.cat(parts).flatten(1)


def _attend(q: Tensor, kv: Tensor, pool: Tensor, span: SequenceSpan) -> Tensor:
    """(num_new, num_heads, head_dim) in q's dtype, computed in float64."""
    tokens = slice(span.first_token, span.first_token + span.num_new)
    gathered = [pool[run.first_slot : run.first_slot + run.length] for run in span.context]
    if span.num_new > 1:
        gathered.append(kv[tokens])
    keys_values = torch.cat(gathered).double().repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    k, v = keys_values.unbind(1)  # (num_keys, num_heads, head_dim)
    scores = torch.einsum("qhd,khd->hqk", q[tokens].double(), k) * q.shape[2] ** -0.5
    first_position = len(k) - span.num_new
    positions = torch.arange(len(k), device=q.device)
    is_future = positions[None, :] > (first_position + torch.arange(span.num_new, device=q.device))[:, None]
    weights = scores.masked_fill(is_future, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
