"""CPU attention over paged K/V that copies no context: runs of consecutive blocks are read where they lie.

Decode: the query heads that share a K/V head become rows of one small query matrix, so grouped-query attention needs no
repeated K/V. Prefill: the chunk attends causally to its own K/V, which is still at hand, and without a mask to each run
of its context; partial results are merged by their log-sum-exp, as flash-decoding does (Dao et al. 2023).
"""

from collections.abc import Sequence

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
    decodes: dict[Run, list[int]] = {}  # run → the single tokens that attend to it
    for span in metadata.spans:
        if span.num_new > 1:
            output[span.first_token : span.first_token + span.num_new] = _prefill(grouped, kv, pool, span)
        elif len(span.context) == 1:
            output[span.first_token] = _attend_rows(grouped, (span.first_token,), pool, span.context[0])[0][0]
        else:
            for run in span.context:
                decodes.setdefault(run, []).append(span.first_token)
    if decodes:
        _decode_over_runs(grouped, decodes, pool, output)
    return output.view(num_tokens, num_heads * head_dim)


def _decode_over_runs(grouped: Tensor, decodes: dict[Run, list[int]], pool: Tensor, output: Tensor) -> None:
    """Single tokens whose context lies in several runs. A run that many share, such as a common prefix, is read once for
    all of them, and the parts of all tokens are merged together: few small operations, whatever the batch."""
    parts = [_attend_rows(grouped, tokens, pool, run) for run, tokens in decodes.items()]
    outputs, log_sums = (torch.cat(column) for column in zip(*parts, strict=True))
    owners = torch.tensor([token for tokens in decodes.values() for token in tokens])  # (num_parts,)
    tokens, places = torch.unique(owners, return_inverse=True)
    index = places.view(-1, 1, 1).expand_as(log_sums)
    largest = torch.full((len(tokens), *log_sums.shape[1:]), -torch.inf).scatter_reduce_(0, index, log_sums, "amax")
    weights = (log_sums - largest.index_select(0, places)).exp_()
    totals = torch.zeros_like(largest).index_add_(0, places, weights)
    merged = outputs.new_zeros((len(tokens), *outputs.shape[1:]), dtype=torch.float32)
    merged.index_add_(0, places, outputs.float().mul_(weights.unsqueeze(-1))).div_(totals.unsqueeze(-1))
    output.index_copy_(0, tokens, merged.to(output.dtype))


def _attend_rows(grouped: Tensor, tokens: Sequence[int], pool: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Single tokens over one run: (m, num_kv_heads, group, head_dim) and log-sum-exp (m, num_kv_heads, group) float32."""
    _, num_kv_heads, group, head_dim = grouped.shape
    if len(tokens) == 1:
        attended, log_sum = _attend(grouped[tokens[0]].unsqueeze(0), *_run_of(pool, run))[:2]
        return attended, log_sum
    rows = grouped[list(tokens)].transpose(0, 1).reshape(1, num_kv_heads, len(tokens) * group, head_dim)
    attended, log_sum = _attend(rows, *_run_of(pool, run))[:2]
    per_token = attended.view(num_kv_heads, len(tokens), group, head_dim).transpose(0, 1)
    return per_token, log_sum.view(num_kv_heads, len(tokens), group).transpose(0, 1)


def _prefill(grouped: Tensor, kv: Tensor, pool: Tensor, span: SequenceSpan) -> Tensor:
    """A chunk of several tokens: (num_new, num_kv_heads, group, head_dim).

    K/V heads become the batch, the query heads of one of them share its K/V by stride 0.
    """
    tokens = slice(span.first_token, span.first_token + span.num_new)
    q = grouped[tokens].permute(1, 2, 0, 3)  # (num_kv_heads, group, num_new, head_dim)
    own = kv[tokens].permute(1, 2, 0, 3).unsqueeze(2).expand(-1, -1, q.shape[1], -1, -1)
    parts = [_attend(q, own[0], own[1], 0.0, True)[:2]]
    for run in span.context:
        k, v = (part.squeeze(0).unsqueeze(1).expand(-1, q.shape[1], -1, -1) for part in _run_of(pool, run))
        parts.append(_attend(q, k, v)[:2])
    return _merged(parts).permute(2, 0, 1, 3)


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
