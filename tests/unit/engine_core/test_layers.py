"""Layers compute what their formula says, whichever kernel serves the number of rows."""

import pytest
import torch

from engine_core.layers.linear import Linear
from engine_core.layers.norm import RmsNorm

ROWS = [1, 2, 16, 70]


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(actual: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """As close as sums of rounded terms in this dtype can be."""
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.double(), exact, atol=tolerance * float(exact.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear_layer_is_the_product_for_any_number_of_rows(
    num_rows: int, has_bias: bool, is_shared: bool, dtype: torch.dtype
) -> None:
    weight, bias = random(96, 48, dtype=dtype), random(96, dtype=dtype, seed=1) if has_bias else None
    x, residual = random(num_rows, 48, dtype=dtype, seed=2), random(num_rows, 96, dtype=dtype, seed=3)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    linear = Linear(weight, bias, is_shared=is_shared)

    with torch.inference_mode():
        y, sums = linear(x), linear.plus(x, residual.clone())

    assert (y.dtype, sums.dtype) == (dtype, dtype)
    assert_close(y, exact, dtype)
    assert_close(sums, exact + residual.double(), dtype)


def test_a_shared_weight_lies_in_memory_once() -> None:
    weight, x = random(96, 48, dtype=torch.bfloat16), random(1, 48, dtype=torch.bfloat16, seed=2)
    linear = Linear(weight, is_shared=True)

    weight.zero_()

    assert not linear(x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_shared_weight_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    linear = Linear(random(4096, 576, dtype=dtype), is_shared=True)
    x = random(64, 576, dtype=dtype, seed=2)

    with torch.inference_mode():
        y = linear(x)

        assert all(torch.equal(linear(x[:num_rows]), y[:num_rows]) for num_rows in (1, 2, 5, 16, 33))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_torch_also_for_rows_of_zeros(dtype: torch.dtype) -> None:
    x, weight = random(5, 3, 64, dtype=dtype) * 3, random(64, dtype=dtype, seed=1)
    x[2] = 0

    y = RmsNorm(weight, 1e-5)(x)

    exact = torch.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    assert_close(y, exact, dtype)
