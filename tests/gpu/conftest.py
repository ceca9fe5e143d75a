"""What runs on a CUDA device. `TRITON_INTERPRET=1` runs the kernels, and only them, on a CPU with Triton installed."""

import os
from pathlib import Path

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob: list[str] = []

try:
    import triton  # noqa: F401
except ModuleNotFoundError:
    HAS_TRITON = False
else:
    HAS_TRITON = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where Triton kernels run."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed: it comes with torch for CUDA")
    if IS_INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """A real device."""
    if device.type != "cuda":
        pytest.skip("no CUDA device")
    return device
