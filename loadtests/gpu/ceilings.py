"""What this GPU can do at most, measured: bytes per second of a copy and of a read, and the rate of a large bf16 product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

SIDE = 8192


@dataclass(frozen=True, slots=True)
class Ceilings:
    bytes_per_s: float  # read and written, of a copy from device to device
    read_bytes_per_s: float  # of a sum over all of it
    flops: float

    def __str__(self) -> str:
        return (
            f"copy {self.bytes_per_s / 1e12:.2f} TB/s, read {self.read_bytes_per_s / 1e12:.2f} TB/s, "
            f"{SIDE}^3 bf16 product {self.flops / 1e12:.0f} TFLOP/s"
        )


@torch.inference_mode()
def measured() -> Ceilings:
    source = torch.randn(1 << 30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    num_bytes = source.numel() * source.element_size()
    copy_ms = timed_ms(lambda: target.copy_(source), 20)
    read_ms = timed_ms(source.sum, 20)
    a, b = (source[at : at + SIDE * SIDE].view(SIDE, SIDE) for at in (0, SIDE * SIDE))
    product_ms = timed_ms(lambda: torch.mm(a, b), 30)
    return Ceilings(2 * num_bytes / copy_ms * 1e3, num_bytes / read_ms * 1e3, 2 * SIDE**3 / product_ms * 1e3)


def timed_ms(run: Callable[[], object], times: int = 50) -> float:
    for _ in range(3):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / times
