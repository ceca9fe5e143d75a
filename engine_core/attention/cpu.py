"""CPU attention over paged K/V that copies no context: runs of consecutive blocks are read where they lie.

Decode: the query heads that share a K/V head become rows of one small query matrix, so grouped-query attention needs no
repeated K/V. Prefill: the chunk attends causally to its own K/V, which is still at hand, and without a mask to each run
of its context; partial results are merged by their log-sum-exp, as flash-decoding does (Dao et al. 2023).
"""

import torch
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""(batch, heads, q_len, dim) ×3 → output and float32 log-sum-exp (batch, heads, q_len); takes any strides."""


def cpu_attention(q: Tensor, kv: Tensor, pool: Tensor, metadata: AttentionMetadata) -> Tensor:
    """See AttentionBackend."""
    pool.index_copy_(0, metadata.slot_mapping, kv)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = kv.shape[2]
    grouped = q.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    output = torch.empty_like(grouped)
    for span in metadata.spans:
        if span.num_new == 1:
            rows = grouped[span.first_token].unsqueeze(0)  # (1, num_kv_heads, group, head_dim)
            output[span.first_token] = _merged([_attend(rows, *_run_of(pool, run))[:2] for run in span.context])[0]
        else:
            _prefill(grouped, kv, pool, span, output)
    return output.view(num_tokens, num_heads * head_dim)


def _prefill(grouped: Tensor, kv: Tensor, pool: Tensor, span: SequenceSpan, output: Tensor) -> None:
    """A chunk of several tokens. K/V heads become the batch, the query heads of one of them share its K/V by stride 0."""
    tokens = slice(span.first_token, span.first_token + span.num_new)
    q = grouped[tokens].permute(1, 2, 0, 3)  # (num_kv_heads, group, num_new, head_dim)
    own = kv[tokens].permute(1, 2, 0, 3).unsqueeze(2).expand(-1, -1, q.shape[1], -1, -1)
    parts = [_attend(q, own[0], own[1], 0.0, True)[:2]]
    for run in span.context:
        k, v = (part.squeeze(0).unsqueeze(1).expand(-1, q.shape[1], -1, -1) for part in _run_of(pool, run))
        parts.append(_attend(q, k, v)[:2])
    output[tokens] = _merged(parts).permute(2, 0, 1, 3)


def _run_of(pool: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """K and V of consecutive slots as views (1, num_kv_heads, length, head_dim)."""
    _, _, num_kv_heads, head_dim = pool.shape
    slot_size = 2 * num_kv_heads * head_dim
    size, stride = (1, num_kv_heads, run.length, head_dim), (0, head_dim, slot_size, 1)
    first = pool.storage_offset() + run.first_slot * slot_size
    return pool.as_strided(size, stride, first), pool.as_strided(size, stride, first + num_kv_heads * head_dim)


def _merged(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Partial attentions over disjoint keys → attention over all of them."""
    if len(parts) == 1:
        return parts[0][0]
    log_sums = torch.stack([log_sum for _, log_sum in parts])
    shares = torch.softmax(log_sums, dim=0).unsqueeze(-1)  # each part's share of the whole sum of exponentials
    merged = torch.stack([output for output, _ in parts]).float().mul_(shares).sum(0)
    return merged.to(parts[0][0].dtype)
