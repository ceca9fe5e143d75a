"""CPU attention over paged K/V that copies no context.

Single tokens go through one compiled call (engine_core.attention.paged_decode). A chunk of several tokens attends causally
to its own K/V, which is still at hand, and without a mask to each run of consecutive blocks of its context, read where it
lies; the parts are merged by their log-sum-exp, as flash-decoding does (Dao et al. 2023).
"""

import numpy as np
import torch
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan, SingleTokens
from engine_core.attention.paged_decode import Bits, paged_decode

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""(batch, heads, q_len, dim) ×3 → output and float32 log-sum-exp (batch, heads, q_len); takes any strides."""

_BITS = {torch.bfloat16: (torch.int16, np.uint16, 16), torch.float32: (torch.int32, np.uint32, 0)}


def cpu_attention(q: Tensor, kv: Tensor, pool: Tensor, metadata: AttentionMetadata) -> Tensor:
    """See AttentionBackend. Computes in bfloat16 and float32."""
    pool.index_copy_(0, metadata.slot_mapping, kv)
    num_tokens, num_heads, head_dim = q.shape
    singles = metadata.singles
    if len(singles.tokens) == num_tokens:
        return _decode(q, pool, singles).to(q.dtype).view(num_tokens, num_heads * head_dim)
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype)
    if len(singles.tokens):
        output[torch.from_numpy(singles.tokens)] = _decode(q, pool, singles).to(q.dtype)
    grouped = (num_tokens, kv.shape[2], num_heads // kv.shape[2], head_dim)
    for span in metadata.spans:
        tokens = slice(span.first_token, span.first_token + span.num_new)
        output.view(grouped)[tokens] = _prefill(q.view(grouped), kv, pool, span)
    return output.view(num_tokens, num_heads * head_dim)


def _decode(q: Tensor, pool: Tensor, singles: SingleTokens) -> Tensor:
    """(m, num_heads, head_dim) float32"""
    output = torch.empty((len(singles.tokens), *q.shape[1:]))
    paged_decode(
        _bits(q), _bits(pool), singles.tokens, singles.block_tables, singles.lengths, singles.block_size,
        np.uint32(_BITS[q.dtype][2]), output.numpy(),
    )  # fmt: skip
    return output


def _bits(tensor: Tensor) -> Bits:
    as_signed, as_unsigned, _ = _BITS[tensor.dtype]
    bits: Bits = tensor.view(as_signed).numpy().view(as_unsigned)
    return bits


def _prefill(grouped: Tensor, kv: Tensor, pool: Tensor, span: SequenceSpan) -> Tensor:
    """A chunk of several tokens: (num_new, num_kv_heads, group, head_dim).

    K/V heads become the batch, the query heads of one of them share its K/V by stride 0.
    """
    tokens = slice(span.first_token, span.first_token + span.num_new)
    q = grouped[tokens].permute(1, 2, 0, 3)  # (num_kv_heads, group, num_new, head_dim)
    own = kv[tokens].permute(1, 2, 0, 3).unsqueeze(2).expand(-1, -1, q.shape[1], -1, -1)
    parts = [_attend(q, own[0], own[1], 0.0, True)[:2]]
    for run in span.context:
        k, v = (part.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for part in _run_of(pool, run))
        parts.append(_attend(q, k, v)[:2])
    return _merged(parts).permute(2, 0, 1, 3)


def _run_of(pool: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """K and V of consecutive slots as views (num_kv_heads, length, head_dim)."""
    k, v = pool[run.first_slot : run.first_slot + run.length].permute(1, 2, 0, 3)
    return k, v


def _merged(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Partial attentions over disjoint keys → attention over all of them."""
    if len(parts) == 1:
        return parts[0][0]
    log_sums = torch.stack([log_sum for _, log_sum in parts])
    shares = torch.softmax(log_sums, dim=0).unsqueeze(-1)  # each part's share of the whole sum of exponentials
    merged = torch.stack([output for output, _ in parts]).float().mul_(shares).sum(0)
    return merged.to(parts[0][0].dtype)
