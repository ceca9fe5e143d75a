"""The gated activation of the MLP: silu(gate) * up, of the fused projection's two halves."""

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """(num_tokens, 2 * size), gate before up → (num_tokens, size)"""
    if gate_up.is_cuda:
        from engine_core.layers.triton_silu import silu_mul as fused

        return fused(gate_up)
    gate, up = gate_up.chunk(2, dim=1)
    return torch.nn.functional.silu(gate).mul_(up)
