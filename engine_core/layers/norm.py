"""RMS normalization (Zhang and Sennrich 2019), over the last dimension."""

import torch
from torch import Tensor


class RmsNorm:
    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight  # (size,)
        self._eps = eps
        self._size = weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Statistics in float32, result in x's dtype. One reduction and two products: CPUs have no fused kernel."""
        if x.device.type != "cpu":
            return torch.rms_norm(x, (self._size,), self._weight, self._eps)
        square_sum = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        scale = square_sum.mul_(1.0 / self._size).add_(self._eps).rsqrt_()
        scaled: Tensor = x * scale
        return scaled.to(x.dtype).mul_(self._weight)
