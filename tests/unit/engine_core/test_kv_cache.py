"""The K/V pool has the size that was asked for, or what memory gives, and is zero."""

from pathlib import Path
from typing import Any

import pytest
import torch

from config.settings import EngineSettings
from engine_core import kv_cache
from engine_core.errors import CannotBoot
from engine_core.kv_cache import KvCache, allocate_kv_cache
from engine_core.models.decoder import DecoderConfig
from engine_core.models.registry import decoder_config

SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
BLOCK_BYTES = 3 * 2 * 2 * 8 * 4 * 16  # layers, K and V, heads, head_dim, float32, tokens


def config() -> DecoderConfig:
    return decoder_config("LlamaForCausalLM", SIZES)


def allocate(max_model_len: int = 1024, **settings: Any) -> KvCache:
    return allocate_kv_cache(
        config(),
        EngineSettings(**settings),
        max_model_len=max_model_len,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_every_layer_has_a_zeroed_pool_of_its_own() -> None:
    cache = allocate(num_gpu_blocks_override=5)

    cache.pools[1].fill_(1.0)

    assert [tuple(pool.shape) for pool in cache.pools] == [(5 * 16, 2, 2, 8)] * 3
    assert [bool(pool.any()) for pool in cache.pools] == [False, True, False]


def test_bytes_become_whole_blocks() -> None:
    assert allocate(kv_cache_memory_bytes=7 * BLOCK_BYTES - 1).num_blocks == 6


def test_a_number_of_blocks_wins_over_bytes() -> None:
    assert allocate(num_gpu_blocks_override=9, kv_cache_memory_bytes=3 * BLOCK_BYTES).num_blocks == 9


def test_no_more_blocks_than_all_sequences_can_use() -> None:
    assert allocate(kv_cache_memory_bytes=1 << 24, max_model_len=100, max_num_seqs=3).num_blocks == 3 * 7


def test_the_default_is_a_share_of_free_memory_per_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_available_bytes", lambda: 100 * BLOCK_BYTES)

    assert allocate(gpu_memory_utilization=0.5, engines=2).num_blocks == 25


def test_the_default_is_bounded_however_much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_available_bytes", lambda: 1 << 50)
    monkeypatch.setattr(kv_cache, "CPU_POOL_BYTES", 12 * BLOCK_BYTES)

    assert allocate().num_blocks == 12


def test_too_little_memory_is_refused_with_the_flag_to_raise() -> None:
    with pytest.raises(CannotBoot, match="--kv-cache-memory-bytes"):
        allocate(kv_cache_memory_bytes=BLOCK_BYTES)


def test_a_pool_beyond_the_address_space_is_refused_with_the_flag_to_lower() -> None:
    with pytest.raises(CannotBoot, match="lower --kv-cache-memory-bytes"):
        allocate(kv_cache_memory_bytes=1 << 60, max_num_seqs=1 << 20, max_model_len=1 << 40)


def test_an_untouched_pool_takes_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()

    cache = allocate(kv_cache_memory_bytes=1 << 29, max_num_seqs=1 << 20)

    assert cache.num_blocks * BLOCK_BYTES > (1 << 29) - BLOCK_BYTES
    assert resident_bytes() - before < 1 << 26
