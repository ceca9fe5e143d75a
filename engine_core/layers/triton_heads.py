"""From the qkv projection to attention on a GPU: norm of q and k, rotation, and the K/V store, in one kernel.

One program per token and head. K and V go straight to their slot; q goes to a buffer of its own, since a rotation in
place would read elements another warp has already written. A slot of -1 is padding: its K/V is stored nowhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _heads(
    H, Q, KV, SLOTS, COS, SIN, QW, KW, eps, slot_stride, plane_stride,
    NUM_Q: tl.constexpr, NUM_KV: tl.constexpr, DIM: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, DIM)
    rolled_at = (at + DIM // 2) % DIM
    row = H + (token * (NUM_Q + 2 * NUM_KV) + head) * DIM
    slot = tl.load(SLOTS + token).to(tl.int64)
    if head >= NUM_Q + NUM_KV:
        v = tl.load(row + at)
        if slot >= 0:
            tl.store(KV + slot * slot_stride + plane_stride + (head - NUM_Q - NUM_KV) * DIM + at, v)
    else:
        x = tl.load(row + at).to(tl.float32)
        rolled = tl.load(row + rolled_at).to(tl.float32)
        if HAS_NORM:
            scale = tl.rsqrt(tl.sum(x * x, 0) / DIM + eps)
            if head < NUM_Q:
                x = x * scale * tl.load(QW + at).to(tl.float32)
                rolled = rolled * scale * tl.load(QW + rolled_at).to(tl.float32)
            else:
                x = x * scale * tl.load(KW + at).to(tl.float32)
                rolled = rolled * scale * tl.load(KW + rolled_at).to(tl.float32)
        cos = tl.load(COS + token * DIM + at).to(tl.float32)
        sin = tl.load(SIN + token * DIM + at).to(tl.float32)
        y = (x * cos + rolled * sin).to(Q.dtype.element_ty)
        if head < NUM_Q:
            tl.store(Q + (token * NUM_Q + head) * DIM + at, y)
        elif slot >= 0:
            tl.store(KV + slot * slot_stride + (head - NUM_Q) * DIM + at, y)


def rotate_and_store(
    heads: Tensor,
    norms: tuple[Tensor, Tensor, float] | None,
    cos: Tensor,
    sin: Tensor,
    pool: Tensor,
    slots: Tensor,
) -> Tensor:
    """heads (num_tokens, num_heads + 2 * num_kv_heads, head_dim) contiguous; norms: weights of q and of k, epsilon.
    Returns q (num_tokens, num_heads, head_dim); K and V are in the pool (num_slots, 2, num_kv_heads, head_dim)."""
    num_tokens, num_all, dim = heads.shape
    num_kv = pool.shape[2]
    num_q = num_all - 2 * num_kv
    q = torch.empty((num_tokens, num_q, dim), dtype=heads.dtype, device=heads.device)
    q_weight, k_weight, eps = (heads, heads, 0.0) if norms is None else norms
    _heads[(num_tokens, num_all)](
        heads, q, pool, slots, cos, sin, q_weight, k_weight, eps, pool.stride(0), pool.stride(1),
        NUM_Q=num_q, NUM_KV=num_kv, DIM=dim, HAS_NORM=norms is not None, num_warps=1,
    )  # fmt: skip
    return q
