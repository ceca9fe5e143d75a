"""Decode attention over paged K/V, compiled by Numba: one call per layer for all sequences that compute one token.

torch has no paged attention for CPUs. Its flash kernel needs a call per sequence and run of blocks, which costs 50 to 80 us
in a model whose weights push everything else out of the caches, and a merge of the parts; this reads the blocks where they
lie, once, with an online softmax per block (Milakov and Gimelshein 2018). It holds no GIL and starts no thread.

bfloat16 is read as its bits: the upper half of a float32. `shift` is 16 for it and 0 for float32, whose bits are all there.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bits = NDArray[np.uint16] | NDArray[np.uint32]
Kernel = TypeVar("Kernel", bound=Callable[..., None])
MINUS_INFINITY = np.float32(-np.inf)


def _compiled(function: Kernel) -> Kernel:
    """Kept on disk, so that the next start need not compile; in memory where no folder can be written."""
    fastmath = {"contract", "reassoc", "nsz", "arcp"}  # infinities and NaN keep their meaning
    try:
        kernel: Kernel = njit(function, cache=True, nogil=True, fastmath=fastmath)
    except RuntimeError:
        kernel = njit(function, nogil=True, fastmath=fastmath)
    return kernel


@_compiled
def paged_decode(
    q: Bits,
    pool: Bits,
    tokens: NDArray[np.int32],
    block_tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    block_size: int,
    shift: np.uint32,
    out: NDArray[np.float32],
) -> None:
    """Sequence i attends with query row tokens[i] of (num_tokens, num_heads, head_dim) to the first lengths[i] slots of its
    blocks block_tables[i] in the pool (num_slots, 2, num_kv_heads, head_dim); the result is out[i] (num_heads, head_dim)."""
    num_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads = pool.shape[2]
    group = num_heads // num_kv_heads  # query heads that share a K/V head
    scale = np.float32(1.0 / math.sqrt(head_dim))
    query = np.empty((num_heads, head_dim), np.float32)
    query_bits = query.view(np.uint32)
    row = np.empty(head_dim, np.float32)  # one key, then one value
    row_bits = row.view(np.uint32)
    scores = np.empty((group, block_size), np.float32)
    sums = np.empty((num_heads, head_dim), np.float32)
    largest = np.empty(num_heads, np.float32)
    totals = np.empty(num_heads, np.float32)
    for i in range(len(tokens)):
        for head in range(num_heads):
            largest[head] = MINUS_INFINITY
            totals[head] = 0.0
            for d in range(head_dim):
                sums[head, d] = 0.0
                query_bits[head, d] = np.uint32(q[tokens[i], head, d]) << shift
            for d in range(head_dim):
                query[head, d] *= scale
        for first in range(0, lengths[i], block_size):
            slot = block_tables[i, first // block_size] * block_size
            count = min(block_size, lengths[i] - first)
            for kv_head in range(num_kv_heads):
                for t in range(count):
                    for d in range(head_dim):
                        row_bits[d] = np.uint32(pool[slot + t, 0, kv_head, d]) << shift
                    for g in range(group):
                        score = np.float32(0.0)
                        for d in range(head_dim):
                            score += query[kv_head * group + g, d] * row[d]
                        scores[g, t] = score
                for g in range(group):
                    head = kv_head * group + g
                    peak = largest[head]
                    for t in range(count):
                        peak = max(peak, scores[g, t])
                    if peak > largest[head]:
                        faded = math.exp(largest[head] - peak)
                        largest[head] = peak
                        totals[head] *= faded
                        for d in range(head_dim):
                            sums[head, d] *= faded
                    for t in range(count):
                        weight = math.exp(scores[g, t] - peak)
                        scores[g, t] = weight
                        totals[head] += weight
                for t in range(count):
                    for d in range(head_dim):
                        row_bits[d] = np.uint32(pool[slot + t, 1, kv_head, d]) << shift
                    for g in range(group):
                        weight = scores[g, t]
                        for d in range(head_dim):
                            sums[kv_head * group + g, d] += weight * row[d]
        for head in range(num_heads):
            for d in range(head_dim):
                out[i, head, d] = sums[head, d] / totals[head]
