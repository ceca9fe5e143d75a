"""Which attention a GPU engine uses, decided once at start; and the block size it likes. No torch: the supervisor asks too.

prefill and mixed steps    fa4, else fa2, else gathered K/V through torch
decode steps               fa4 where batch x K/V heads fill the GPU at head_dim 128, the Triton split-KV kernel below
"""

import logging
from typing import Literal

from config.packages import is_installed
from engine_core.errors import CannotBoot

logger = logging.getLogger(__name__)

Name = Literal["fa4", "fa2", "triton", "reference"]
PACKAGES = {"fa4": ("flash_attn.cute", "cutlass"), "fa2": ("flash_attn_2_cuda",)}  # modules that must be there
EXTRAS = {"fa4": "gpu", "fa2": "gpu-fa2"}  # of pyproject.toml
FA2_PAGE = 256
BLOCK_SIZES: dict[Name, int] = {"fa4": 128, "fa2": FA2_PAGE, "triton": 64, "reference": 16}


def default_block_size(asked: str, capability: tuple[int, int]) -> int:
    """Tokens per KV block when the operator has not said: the page that the backend reads fastest."""
    name = _fastest(128, FA2_PAGE, capability) if asked == "auto" else _named(asked)
    return BLOCK_SIZES[name]


def choose(
    asked: str, *, head_dim: int, block_size: int, capability: tuple[int, int], is_float32: bool = False
) -> Name:
    """Raises CannotBoot when a block is not a page of the backend, the package is missing or does not compute in float32."""
    fastest: Name = "triton" if is_float32 else _fastest(head_dim, block_size, capability)
    name = fastest if asked == "auto" else _named(asked)
    if is_float32 and name in PACKAGES:
        raise CannotBoot(f"attention backend {name} does not compute in float32: take triton, or another --dtype")
    if name == "fa2" and block_size % FA2_PAGE:
        raise CannotBoot(f"attention backend fa2 needs --block-size {FA2_PAGE} (it is {block_size})")
    if name != "reference" and (block_size < 16 or block_size & (block_size - 1)):
        raise CannotBoot(f"attention on CUDA needs --block-size to be a power of two from 16 (it is {block_size})")
    logger.info("attention backend", extra={"backend": name, "asked": asked, "head_dim": head_dim})
    return name


def _fastest(head_dim: int, block_size: int, capability: tuple[int, int]) -> Name:
    if capability[0] == 9 and head_dim in (64, 128) and has_packages("fa4"):
        return "fa4"
    if capability[0] >= 8 and block_size % FA2_PAGE == 0 and has_packages("fa2"):
        return "fa2"
    return "triton"


def _named(asked: str) -> Name:
    if not has_packages(asked):
        raise CannotBoot(
            f"--attention-backend {asked}: {' and '.join(PACKAGES[asked])} must be installed (pip install '.[{EXTRAS[asked]}]')"
        )
    names: dict[str, Name] = {"fa4": "fa4", "fa2": "fa2", "triton": "triton", "reference": "reference"}
    return names[asked]


def has_packages(name: str) -> bool:
    """Of this backend."""
    return all(map(is_installed, PACKAGES.get(name, ())))
