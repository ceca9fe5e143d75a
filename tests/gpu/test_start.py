"""What makes a start short, each in processes of its own: the context that is there before torch, and kept kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_core.attention.choice import has_packages

CONTEXT = """
import ctypes, json
from engine_core.early_context import open_beside
open_beside(0).join()
import torch
driver, flags, active = ctypes.CDLL("libcuda.so.1"), ctypes.c_uint(), ctypes.c_int()
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
was_initialized = torch.cuda.is_initialized()
print(json.dumps({"active": active.value, "torch": was_initialized, "sum": torch.ones(7, device="cuda").sum().item()}))
"""

ATTENTION = """
import json, sys, torch
from engine_core.attention.base import CudaMetadata
from engine_core.attention.fa4 import Fa4
torch.manual_seed(0)
cuda = {"device": "cuda"}
kernels, ints = Fa4(), {"dtype": torch.int32, **cuda}
q = torch.randn((40, 16, 128), dtype=torch.bfloat16, **cuda)
pool = torch.randn((2, 6, 128, 8, 128), dtype=torch.bfloat16, **cuda)
table = torch.tensor([[0, 1], [2, 3]], **ints)
lengths = torch.tensor([200, 77], **ints)
step = CudaMetadata(lengths, table, lengths, torch.tensor([0, 33, 40], **ints), 0, (33, 7), (200, 77))
out = torch.empty_like(q)
sums = []
for _ in range(2):
    kernels.mixed(q, pool[0], pool[1], step, out)
    decoded = kernels.decode(q[:2], pool[0], pool[1], table, lengths)
    sums.append([part.double().abs().sum().item() for part in (out, decoded)])
print(json.dumps({"sums": sums, "compiler": "cutlass" in sys.modules}))
"""


def told(program: str, **environment: str) -> Any:  # Any: JSON
    """What a process of its own printed at its end, which was a good one."""
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_torch_takes_up_the_context_that_was_opened_beside_its_import(cuda: torch.device) -> None:
    assert told(CONTEXT) == {"active": 1, "torch": False, "sum": 7.0}


def test_kernels_of_another_process_compute_the_same_without_the_compiler(cuda: torch.device, tmp_path: Path) -> None:
    if not has_packages("fa4"):
        pytest.skip("fa4 is not installed")
    cache = {"FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(tmp_path), "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}

    first, second = told(ATTENTION, **cache), told(ATTENTION, **cache)

    assert first["compiler"] and not second["compiler"]
    assert first["sums"] == second["sums"]
    assert first["sums"][0] == first["sums"][1]
