"""Each fused kernel computes what plain torch computes in float32, within one rounding of the result."""

import pytest
import torch
from torch import Tensor

from engine_core.layers.heads import PlainHeads
from engine_core.layers.norm import RmsNorm

DTYPE = torch.bfloat16


def random(*shape: int, device: torch.device, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DTYPE).to(device)


def assert_rounds_to(actual: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(actual.float().cpu(), exact.float().cpu(), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("size", [64, 576, 1024])
def test_rms_norm(device: torch.device, size: int) -> None:
    from engine_core.layers.triton_norm import rms_norm

    x, weight = random(5, size, device=device), random(size, device=device)

    y = rms_norm(x, weight, 1e-6)

    exact = torch.rms_norm(x.float().cpu(), (size,), weight.float().cpu(), 1e-6)
    assert_rounds_to(y, exact)


def test_rms_norm_reads_rows_with_a_stride(device: torch.device) -> None:
    from engine_core.layers.triton_norm import rms_norm

    wide = random(3, 256, device=device)

    assert torch.equal(
        rms_norm(wide[:, :128], wide[0, :128], 1e-6), rms_norm(wide[:, :128].contiguous(), wide[0, :128], 1e-6)
    )


@pytest.mark.parametrize("size", [96, 1536, 3072])
def test_silu_mul(device: torch.device, size: int) -> None:
    from engine_core.layers.triton_silu import silu_mul

    x = random(3, 2 * size, device=device)

    exact = torch.nn.functional.silu(x[:, :size].float()) * x[:, size:].float()
    assert_rounds_to(silu_mul(x), exact)


@pytest.mark.parametrize("num_in, num_out", [(576, 960), (1024, 100), (3072, 1024)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
def test_gemv(device: torch.device, num_in: int, num_out: int, has_bias: bool, has_residual: bool) -> None:
    from engine_core.layers.triton_gemv import gemv

    x, weight = random(1, num_in, device=device), random(num_out, num_in, device=device, scale=num_in**-0.5)
    bias = random(num_out, device=device) if has_bias else None
    residual = random(1, num_out, device=device) if has_residual else None

    exact = x.float() @ weight.float().t()
    for part in (bias, residual):
        exact = exact if part is None else exact + part.float()
    assert_rounds_to(gemv(x, weight, bias, residual), exact)
    if residual is not None:
        assert_rounds_to(gemv(x, weight, bias, residual, residual), exact)
        assert_rounds_to(residual, exact)


@pytest.mark.parametrize("num_heads, num_kv_heads, head_dim", [(9, 3, 64), (16, 8, 128)])
@pytest.mark.parametrize("has_norms", [True, False])
def test_heads_are_normalized_rotated_and_stored(
    device: torch.device, num_heads: int, num_kv_heads: int, head_dim: int, has_norms: bool
) -> None:
    from engine_core.layers.triton_heads import rotate_and_store

    num_tokens, num_slots = 5, 32
    heads = random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, device=device)
    cos, sin = random(num_tokens, 1, head_dim, device=device), random(num_tokens, 1, head_dim, device=device)
    weights = random(2, head_dim, device=device)
    planes = torch.full((2, num_slots, num_kv_heads, head_dim), 7.0, dtype=DTYPE, device=device)
    pool = planes.transpose(0, 1)
    slots = torch.tensor([3, 30, -1, 0, 17], dtype=torch.int32, device=device)
    norms = (RmsNorm(weights[0].float().cpu(), 1e-6), RmsNorm(weights[1].float().cpu(), 1e-6)) if has_norms else None
    exact_q, exact_kv = PlainHeads(num_heads, norms)(
        heads.float().cpu().clone(), cos.float().cpu(), sin.float().cpu(), pool, slots
    )

    q = rotate_and_store(heads, (weights[0], weights[1], 1e-6) if has_norms else None, cos, sin, pool, slots)

    assert_rounds_to(q, exact_q)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            assert_rounds_to(pool[slot], exact_kv[token])
    untouched = [slot for slot in range(num_slots) if slot not in slots.tolist()]
    assert bool((pool[untouched] == 7.0).all())
