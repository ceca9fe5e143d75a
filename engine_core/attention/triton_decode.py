"""Paged attention of single tokens in Triton: the keys of a sequence are split over programs, the parts merged by their
log-sum-exp (flash-decoding, Dao et al. 2023). Query heads that share a K/V head are one tile. Any page size from 16.

How many splits depends on the batch size alone, so that a captured graph holds for every length.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS = 32
LOG2_E = 1.4426950408889634


@triton.jit
def attend(
    q, K, V, TABLE, first, last, scale, page_stride, slot_stride,
    TILE: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attention of q (TILE, DIM) over the keys from `first` to before `last` of one table's sequence, before its division:
    the largest score and the sum of weights, (TILE,) in base 2, and the weighted values, (TILE, DIM)."""
    d = tl.arange(0, DIM)
    largest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    sums = tl.zeros([TILE, DIM], tl.float32)
    for start in range(first, last, KEYS):
        at = start + tl.arange(0, KEYS)
        is_key = at < last
        page = tl.load(TABLE + at // PAGE, mask=is_key, other=0).to(tl.int64)
        place = page * page_stride + (at % PAGE) * slot_stride
        k = tl.load(K + place[None, :] + d[:, None], mask=is_key[None, :], other=0.0)
        scores = tl.where(is_key[None, :], tl.dot(q, k, input_precision="ieee") * scale, float("-inf"))
        peak = tl.maximum(largest, tl.max(scores, 1))
        faded = tl.exp2(largest - peak)
        weights = tl.exp2(scores - peak[:, None])
        v = tl.load(V + place[:, None] + d[None, :], mask=is_key[:, None], other=0.0)
        total = total * faded + tl.sum(weights, 1)
        sums = sums * faded[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = peak
    return largest, total, sums


@triton.jit
def _split(
    Q, K, V, TABLE, LENGTHS, OUT, LOG_SUMS, scale, table_stride, page_stride, slot_stride, q_stride,
    NUM_KV: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr,
    PAGE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(LENGTHS + sequence)
    share = tl.cdiv(tl.cdiv(length, SPLITS), KEYS) * KEYS
    first = split * share
    last = tl.minimum(length, first + share)
    member, d = tl.arange(0, TILE), tl.arange(0, DIM)
    is_member = member < GROUP
    heads = kv_head * GROUP + member
    q = tl.load(Q + sequence * q_stride + heads[:, None] * DIM + d[None, :], mask=is_member[:, None], other=0.0)
    largest, total, sums = attend(
        q, K + kv_head * DIM, V + kv_head * DIM, TABLE + sequence * table_stride, first, last, scale,
        page_stride, slot_stride, TILE, DIM, PAGE, KEYS,
    )  # fmt: skip
    row = (sequence * NUM_KV * GROUP + heads) * SPLITS + split
    result = sums / tl.maximum(total, 1e-30)[:, None]
    tl.store(OUT + row[:, None] * DIM + d[None, :], result.to(OUT.dtype.element_ty), mask=is_member[:, None])
    if SPLITS > 1:
        log_sum = tl.where(total > 0, largest + tl.log2(tl.maximum(total, 1e-30)), float("-inf"))
        tl.store(LOG_SUMS + row, log_sum, mask=is_member)


@triton.jit
def _merge(PARTS, LOG_SUMS, OUT, DIM: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split, d = tl.arange(0, SPLITS), tl.arange(0, DIM)
    log_sums = tl.load(LOG_SUMS + row * SPLITS + split)
    shares = tl.exp2(log_sums - tl.max(log_sums, 0))
    shares = shares / tl.sum(shares, 0)
    parts = tl.load(PARTS + (row * SPLITS + split)[:, None] * DIM + d[None, :])
    tl.store(OUT + row * DIM + d, tl.sum(parts * shares[:, None], 0).to(OUT.dtype.element_ty))


def paged_decode(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, lengths: Tensor, out: Tensor | None = None
) -> Tensor:
    """q (n, num_heads, head_dim) contiguous, k and v (num_blocks, page, num_kv_heads, head_dim), block_table (n, width) and
    lengths (n,) int32 → like q, in `out` if given. A sequence of length 0 gets zeros."""
    n, num_heads, dim = q.shape
    page, num_kv = k.shape[1], k.shape[2]
    group = num_heads // num_kv
    splits = num_splits(n * num_kv, num_processors(q.device))
    out = torch.empty_like(q) if out is None else out
    parts, log_sums = out, out
    if splits > 1:
        parts = torch.empty((n, num_heads, splits, dim), dtype=torch.float32, device=q.device)
        log_sums = torch.empty((n, num_heads, splits), dtype=torch.float32, device=q.device)
    _split[(n, num_kv, splits)](
        q, k, v, block_table, lengths, parts, log_sums, dim**-0.5 * LOG2_E,
        block_table.stride(0), k.stride(0), k.stride(1), q.stride(0),
        NUM_KV=num_kv, GROUP=group, TILE=max(16, triton.next_power_of_2(group)), DIM=dim,
        PAGE=page, KEYS=keys_at_once(k), SPLITS=splits, num_warps=4, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _merge[(n * num_heads,)](parts, log_sums, out, DIM=dim, SPLITS=splits, num_warps=2)
    return out


def keys_at_once(k: Tensor) -> int:
    """As many as shared memory holds of three stages."""
    return (128 if k.shape[3] <= 64 else 64) * 2 // k.element_size()


def num_splits(num_tiles: int, num_processors: int) -> int:
    """A power of two: about two programs per multiprocessor."""
    splits = 1
    while splits * 2 * num_tiles <= 2 * num_processors and splits < MAX_SPLITS:
        splits *= 2
    return splits


@lru_cache
def num_processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 16  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
