"""Which passes with prefill are captured; what they compute is tests/gpu's."""

from typing import Any

import pytest

from engine_core.models.decoder import read_config
from engine_core.prefill_graphs import MAX_TOKENS, most_tokens, sizes_up_to
from loadtests.gpu.shapes import SHAPES


@pytest.mark.parametrize("max_tokens", [15, 16, 64, 500, 512, 1000, 1024, 2048, 100_000])
def test_sizes_ascend_and_pad_little(max_tokens: int) -> None:
    sizes = sizes_up_to(max_tokens)

    assert sizes == sorted(set(sizes)) and all(size <= min(max_tokens, MAX_TOKENS) for size in sizes)
    for num_tokens in range(1, max(sizes, default=0) + 1):
        size = next(size for size in sizes if size >= num_tokens)
        assert size < max(16, 2 * num_tokens, num_tokens + 64) and size - num_tokens < max(64, num_tokens // 3)


@pytest.mark.parametrize(("shape", "expected"), [("qwen3-0.6b", MAX_TOKENS), ("llama-3.1-8b", 573)])
def test_passes_that_keep_the_device_busy_are_not_captured(shape: str, expected: int) -> None:
    hf_config: dict[str, Any] = SHAPES[shape]
    config = read_config(hf_config, has_qkv_bias=False, has_output_bias=False, has_qk_norm=False)

    assert most_tokens(config) == expected
