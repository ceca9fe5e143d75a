"""A dense layer y = x Wᵀ + b, with the weight repacked for the CPU where that pays.

oneDNN reorders a plain weight in every call; packed once, a few rows cost 30-45 % less (SmolLM2 shapes, bf16). This is
what torch's own inductor does when it freezes a model, through the same operators. Up to `FEW_ROWS` rows the time is
that of reading the weight, and FBGEMM's float16 kernel reads it 40 % faster still: where the caller can spare the memory,
bfloat16 weights are packed for it a second time (float16 holds their eight bits exactly). Its sums are float32.
"""

import torch
from torch import Tensor

PACK_FOR_ROWS = 16  # a hint: the layout oneDNN picks for small batches serves large ones as well
FEW_ROWS = 2  # FBGEMM wins up to here; at 4 rows they are even, at 16 oneDNN is 1.6 times as fast
FLOAT16_MAX = 65504.0


class Linear:
    """`weight` is (out_features, in_features); `bias` is (out_features,) or None. `is_packed_twice` doubles the memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_packed_twice: bool = False) -> None:
        self._bias = None if bias is None else bias.clone()
        self._is_packed = can_pack(weight)
        self._few_rows_weight = _packed_for_few_rows(weight, bias) if self._is_packed and is_packed_twice else None
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACK_FOR_ROWS) if self._is_packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(num_tokens, in_features) → (num_tokens, out_features)"""
        if self._few_rows_weight is not None and x.shape[0] <= FEW_ROWS:
            return self._of_few_rows(x).to(x.dtype)
        if self._is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return y
        return torch.nn.functional.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """`self(x) + residual`, in one pass where the backend can; `residual` may be overwritten."""
        if self._few_rows_weight is not None and x.shape[0] <= FEW_ROWS:
            return residual.add_(self._of_few_rows(x))
        if self._is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
            return y
        return residual.add_(torch.nn.functional.linear(x, self._weight, self._bias))

    def in_float32(self, x: Tensor) -> Tensor:
        """`self(x)` as float32; not rounded on the way where the backend can."""
        if self._few_rows_weight is not None and x.shape[0] <= FEW_ROWS:
            return self._of_few_rows(x)
        return self(x).float()

    def _of_few_rows(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._few_rows_weight)
        return y


def can_pack(weight: Tensor) -> bool:
    """On a CPU whose oneDNN computes in this dtype."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _packed_for_few_rows(weight: Tensor, bias: Tensor | None) -> object | None:
    """None where FBGEMM is missing or float16 does not hold the weights."""
    if weight.dtype != torch.bfloat16 or "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    if float(weight.abs().max()) > FLOAT16_MAX:
        return None
    packed: object = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    return packed
