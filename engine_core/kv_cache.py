"""The K/V memory: one zeroed pool per layer, sized once."""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config.settings import EngineSettings
from engine_core.errors import CannotBoot
from engine_core.models.decoder import DecoderConfig

CPU_POOL_BYTES = 4 << 30  # at most, unless asked for: pages of a CPU pool cost nothing until they are used


@dataclass(frozen=True)
class KvCache:
    """`pools[layer]` is (num_blocks * block_size, 2, num_kv_heads, head_dim); see engine_core.attention.base."""

    pools: list[Tensor]
    num_blocks: int


def allocate_kv_cache(
    config: DecoderConfig,
    settings: EngineSettings,
    *,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    reserved_bytes: int = 0,
) -> KvCache:
    """Raises CannotBoot when not even one block fits. `reserved_bytes` of a GPU stay free for the passes themselves."""
    slot_bytes = 2 * config.num_kv_heads * config.head_dim * dtype.itemsize * config.num_layers
    block_bytes = slot_bytes * settings.block_size
    num_blocks = settings.num_gpu_blocks_override or _budget_bytes(settings, device, reserved_bytes) // block_bytes
    most_blocks = settings.max_num_seqs * -(-max_model_len // settings.block_size)
    num_blocks = min(num_blocks, most_blocks)  # more could never be in use
    if num_blocks < 2:
        raise CannotBoot(
            f"the KV cache has room for {num_blocks} blocks of {block_bytes} bytes: raise --kv-cache-memory-bytes"
        )
    size = (config.num_layers, num_blocks * settings.block_size, 2, config.num_kv_heads, config.head_dim)
    try:
        memory = _zeroed(size, dtype, device)
    except (RuntimeError, OSError, ValueError):
        raise CannotBoot(
            f"the KV cache of {num_blocks * block_bytes >> 20} MiB cannot be allocated: lower --kv-cache-memory-bytes"
        ) from None
    return KvCache([_in_planes(layer) for layer in memory.unbind(0)], num_blocks)


def _in_planes(layer: Tensor) -> Tensor:
    """GPU kernels want K and V as planes of their own: the same shape, other strides."""
    if layer.device.type == "cpu":
        return layer
    num_slots, two, num_kv_heads, head_dim = layer.shape
    return layer.view(two, num_slots, num_kv_heads, head_dim).transpose(0, 1)


def _zeroed(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU untouched anonymous pages, which are zero and take no memory: torch.zeros would write all of them."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(size)


def _budget_bytes(settings: EngineSettings, device: torch.device, reserved_bytes: int) -> int:
    if settings.kv_cache_memory_bytes is not None:
        return settings.kv_cache_memory_bytes
    if device.type == "cpu":
        share = int(settings.gpu_memory_utilization * _available_bytes() / settings.engines)
        return min(CPU_POOL_BYTES, share)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return int(settings.gpu_memory_utilization * total_bytes) - (total_bytes - free_bytes) - reserved_bytes


def _available_bytes() -> int:
    """What Linux believes can be given out without swapping, within this container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))
