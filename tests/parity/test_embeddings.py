"""Embeddings equal transformers' last hidden states, pooled; same weights, float32: alone, in chunks, in a crowd."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from config.settings import EngineSettings
from ipc.messages import Pooling, SamplingParams
from tests.parity.in_process_engine import InProcessEngine
from tests.parity.prompts import parity_prompts

ONE = SamplingParams(max_tokens=1, temperature=0.0)
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
TOLERANCE = 2e-4  # of the vector's largest value


@pytest.fixture(scope="module")
def prompts(model_folder: Path) -> list[list[int]]:
    """Short ones: small chunks make as many of them as of long ones."""
    return [prompt for prompt in parity_prompts(model_folder) if len(prompt) < 200][::6]


@pytest.fixture(scope="module")
def hidden(model_folder: Path, prompts: list[list[int]]) -> list[NDArray[np.float32]]:
    """(num_tokens, hidden_size) of each prompt."""
    model: Any = AutoModel.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).last_hidden_state[0].numpy() for prompt in prompts]


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


def wanted_of(hidden: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = (hidden[-1:] if pooling is Pooling.LAST else hidden).mean(0)
    return mean


@pytest.mark.parametrize("max_num_batched_tokens", [4096, 48])
@pytest.mark.parametrize("pooling", [Pooling.LAST, Pooling.MEAN])
def test_embeddings_are_those_of_transformers(
    model_folder: Path,
    prompts: list[list[int]],
    hidden: list[NDArray[np.float32]],
    pooling: Pooling,
    max_num_batched_tokens: int,
) -> None:
    engine = InProcessEngine(model_folder, EngineSettings(max_num_batched_tokens=max_num_batched_tokens))

    for _ in range(2):  # the second time from the prefix cache, as far as there may be one
        engine.generate(prompts, [ONE] * len(prompts), [pooling] * len(prompts))

        for place, states in enumerate(hidden):
            assert_close(engine.embeddings[place], wanted_of(states, pooling))


def test_embeddings_and_generations_share_steps_and_a_scarce_pool(
    model_folder: Path, prompts: list[list[int]], hidden: list[NDArray[np.float32]]
) -> None:
    num_blocks = max(len(prompt) for prompt in prompts) // 16 + 8
    engine = InProcessEngine(
        model_folder, EngineSettings(max_num_batched_tokens=64, num_gpu_blocks_override=num_blocks)
    )
    alone = engine.generate(prompts[:4], [GREEDY] * 4)
    poolings = [Pooling.NONE, Pooling.MEAN, Pooling.LAST] * len(prompts)
    crowd = [prompt for prompt in prompts for _ in range(3)]

    outputs = engine.generate(
        crowd, [ONE if pooling else GREEDY for pooling in poolings[: len(crowd)]], poolings[: len(crowd)]
    )

    assert outputs[0:12:3] == alone
    for place, states in enumerate(hidden):
        assert_close(engine.embeddings[3 * place + 1], wanted_of(states, Pooling.MEAN))
        assert_close(engine.embeddings[3 * place + 2], wanted_of(states, Pooling.LAST))
