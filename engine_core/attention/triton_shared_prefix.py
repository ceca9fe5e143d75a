"""Paged attention of single tokens whose sequences begin with the same K/V, in Triton: a shared prefix is read once per tile
of sequences, the rest of each sequence by itself, and the two are merged by their log-sum-exp (Hydragen, Juravsky et al.,
arXiv 2402.05099).

How the work is cut depends on the batch size alone, so that a captured graph holds for every grouping.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine_core.attention.base import SharedPrefixes
from engine_core.attention.triton_decode import LOG2_E, attend, keys_at_once, num_processors, num_splits


@triton.jit
def _shared_part(
    Q, K, V, TABLE, MEMBERS, LENGTHS, PARTS, LOG_SUMS, scale, table_stride, page_stride, slot_stride, q_stride,
    NUM_KV: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(LENGTHS + tile)
    if length == 0:
        return
    share = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    first = split * share
    last = tl.minimum(length, first + share)
    member, d = tl.arange(0, TILE), tl.arange(0, DIM)
    place = member // GROUP
    sequence = tl.load(MEMBERS + tile * ROWS + place, mask=place < ROWS, other=-1).to(tl.int64)
    is_member = sequence >= 0
    head = kv_head * GROUP + member % GROUP
    q_at = sequence[:, None] * q_stride + head[:, None] * DIM + d[None, :]
    q = tl.load(Q + q_at, mask=is_member[:, None], other=0.0)
    table = TABLE + tl.load(MEMBERS + tile * ROWS).to(tl.int64) * table_stride
    largest, total, sums = attend(
        q, K + kv_head * DIM, V + kv_head * DIM, table, first, last, scale, page_stride, slot_stride,
        TILE, DIM, PAGE, KEYS,
    )  # fmt: skip
    row = (sequence * NUM_KV * GROUP + head) * SPLITS + split
    result = sums / tl.maximum(total, 1e-30)[:, None]
    tl.store(PARTS + row[:, None] * DIM + d[None, :], result, mask=is_member[:, None])
    log_sum = tl.where(total > 0, largest + tl.log2(tl.maximum(total, 1e-30)), float("-inf"))
    tl.store(LOG_SUMS + row, log_sum, mask=is_member)


@triton.jit
def _own_part(
    Q, K, V, TABLE, LENGTHS, SHARED_LENS, PARTS, LOG_SUMS, OUT,
    scale, table_stride, page_stride, slot_stride, q_stride,
    NUM_KV: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    sequence, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_shared = tl.load(SHARED_LENS + sequence)
    length = tl.load(LENGTHS + sequence)
    member, d = tl.arange(0, TILE), tl.arange(0, DIM)
    is_member = member < GROUP
    head = kv_head * GROUP + member
    q = tl.load(Q + sequence * q_stride + head[:, None] * DIM + d[None, :], mask=is_member[:, None], other=0.0)
    largest, total, sums = attend(
        q, K + kv_head * DIM, V + kv_head * DIM, TABLE + sequence * table_stride, num_shared, length, scale,
        page_stride, slot_stride, TILE, DIM, PAGE, KEYS,
    )  # fmt: skip
    row = sequence * NUM_KV * GROUP + head
    if num_shared > 0:
        for split in range(SPLITS):
            log_sum = tl.load(LOG_SUMS + row * SPLITS + split, mask=is_member, other=float("-inf"))
            part_at = (row * SPLITS + split)[:, None] * DIM + d[None, :]
            part = tl.load(PARTS + part_at, mask=is_member[:, None], other=0.0)
            peak = tl.maximum(largest, log_sum)
            faded, weight = tl.exp2(largest - peak), tl.exp2(log_sum - peak)
            total = total * faded + weight
            sums = sums * faded[:, None] + part * weight[:, None]
            largest = peak
    result = sums / tl.maximum(total, 1e-30)[:, None]
    tl.store(OUT + row[:, None] * DIM + d[None, :], result.to(OUT.dtype.element_ty), mask=is_member[:, None])


def shared_prefix_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    shared: SharedPrefixes,
    out: Tensor | None = None,
) -> Tensor:
    """As triton_decode.paged_decode, in `out` if given; every sequence is longer than the prefix it shares."""
    n, num_heads, dim = q.shape
    page, num_kv = k.shape[1], k.shape[2]
    group, (num_tiles, rows) = num_heads // num_kv, shared.members.shape
    splits = num_splits(max(1, n // rows) * num_kv, num_processors(q.device))
    parts = torch.empty((n, num_heads, splits, dim), dtype=torch.float32, device=q.device)
    log_sums = torch.empty((n, num_heads, splits), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q) if out is None else out
    keys, scale = keys_at_once(k), dim**-0.5 * LOG2_E
    strides = (block_table.stride(0), k.stride(0), k.stride(1), q.stride(0))
    _shared_part[(num_tiles, num_kv, splits)](
        q, k, v, block_table, shared.members, shared.tile_lengths, parts, log_sums, scale, *strides,
        NUM_KV=num_kv, GROUP=group, ROWS=rows, TILE=max(16, triton.next_power_of_2(rows * group)), DIM=dim,
        PAGE=page, KEYS=keys, SPLITS=splits, num_warps=4, num_stages=3,
    )  # fmt: skip
    _own_part[(n, num_kv)](
        q, k, v, block_table, lengths, shared.shared_lens, parts, log_sums, out, scale, *strides,
        NUM_KV=num_kv, GROUP=group, TILE=max(16, triton.next_power_of_2(group)), DIM=dim,
        PAGE=page, KEYS=keys, SPLITS=splits, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
