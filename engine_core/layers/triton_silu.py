"""silu(gate) * up on a GPU, in one pass over the product of the fused gate and up projections."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _silu_mul(X, Y, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < SIZE
    gate = tl.load(X + row * 2 * SIZE + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(X + row * 2 * SIZE + SIZE + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(Y + row * SIZE + at, (gate * tl.sigmoid(gate) * up).to(Y.dtype.element_ty), mask=is_in)


def silu_mul(gate_up: Tensor) -> Tensor:
    """(num_tokens, 2 * size) contiguous → (num_tokens, size)"""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(num_tokens, triton.cdiv(size, BLOCK))](gate_up, y, SIZE=size, BLOCK=BLOCK, num_warps=4)
    return y
