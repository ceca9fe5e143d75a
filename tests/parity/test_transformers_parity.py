"""Greedy output token for token equal to transformers' `generate`, same weights, float32: alone and in every kind of crowd.

42 prompts of 1 to 1500 tokens, 64 new tokens each. Kernels add in an order that depends on the shapes of the batch, so where
the two largest logits are closer than float32 can tell, either may be picked: a difference is accepted at such a tie only,
and the tie is looked up in transformers' own logits.
Alone, every sixth prompt is compared unless PARITY_ALL=1 asks for all (some minutes on two cores).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from config.settings import EngineSettings
from ipc.messages import SamplingParams
from tests.parity.in_process_engine import InProcessEngine
from tests.parity.prompts import parity_prompts

NEW_TOKENS = 64
TIE = 1e-3
BATCH = 7  # transformers' rows at once, padded on the left
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts(model_folder: Path) -> list[list[int]]:
    return parity_prompts(model_folder)


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Any:  # Any: transformers' types promise less than it does
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(reference: Any, prompts: list[list[int]]) -> list[list[int]]:
    model = reference
    model.generation_config.eos_token_id = None
    outputs: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with torch.inference_mode():
        for start in range(0, len(prompts), BATCH):
            batch = by_length[start : start + BATCH]
            width = max(len(prompts[index]) for index in batch)
            ids = torch.tensor([[0] * (width - len(prompts[index])) + prompts[index] for index in batch])
            mask = torch.tensor([[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in batch])
            generated = model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )
            for index, row in zip(batch, generated, strict=True):
                outputs[index] = row[width:].tolist()
    return outputs


def assert_equal(reference: Any, prompts: list[list[int]], outputs: list[list[int]], expected: list[list[int]]) -> None:
    """Token for token, but for ties of float32: TIE apart in logits of the order of 20."""
    for prompt, output, wanted in zip(prompts, outputs, expected, strict=True):
        if output == wanted:
            continue
        at = next(n for n, (ours, theirs) in enumerate(zip(output, wanted, strict=True)) if ours != theirs)
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + wanted[:at]])).logits[0, -1]
        gap = float(logits[wanted[at]] - logits[output[at]])
        assert abs(gap) < TIE, f"prompt of {len(prompt)} tokens differs at output {at}: logits {gap} apart"


def engine_for(folder: Path, **settings: object) -> InProcessEngine:
    return InProcessEngine(folder, EngineSettings(**{"max_num_seqs": 64, **settings}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[InProcessEngine]:
    yield engine_for(model_folder)


@pytest.mark.timeout(600)
def test_alone(engine: InProcessEngine, prompts: list[list[int]], expected: list[list[int]], reference: Any) -> None:
    step = 1 if os.environ.get("PARITY_ALL") else 6
    outputs = [engine.generate([prompt], [GREEDY])[0] for prompt in prompts[::step]]

    assert_equal(reference, prompts[::step], outputs, expected[::step])


def test_all_together_and_again_out_of_the_prefix_cache(
    engine: InProcessEngine, prompts: list[list[int]], expected: list[list[int]], reference: Any
) -> None:
    hits_before = engine.scheduler.counts.prefix_hits

    assert_equal(reference, prompts, engine.generate(prompts, [GREEDY] * len(prompts)), expected)
    assert_equal(reference, prompts, engine.generate(prompts, [GREEDY] * len(prompts)), expected)
    assert engine.scheduler.counts.prefix_hits - hits_before > sum(map(len, prompts)) // 2


def test_all_together_without_prefix_cache(
    model_folder: Path, prompts: list[list[int]], expected: list[list[int]], reference: Any
) -> None:
    engine = engine_for(model_folder, enable_prefix_caching=False)

    assert_equal(reference, prompts, engine.generate(prompts, [GREEDY] * len(prompts)), expected)
    assert engine.scheduler.counts.prefix_hits == 0


def test_in_chunks_of_64_tokens(
    model_folder: Path, prompts: list[list[int]], expected: list[list[int]], reference: Any
) -> None:
    engine = engine_for(model_folder, max_num_batched_tokens=64)

    assert_equal(reference, prompts, engine.generate(prompts, [GREEDY] * len(prompts)), expected)


def test_with_a_pool_so_small_that_sequences_are_preempted(
    model_folder: Path, prompts: list[list[int]], expected: list[list[int]], reference: Any
) -> None:
    engine = engine_for(model_folder, num_gpu_blocks_override=110)

    assert_equal(reference, prompts, engine.generate(prompts, [GREEDY] * len(prompts)), expected)
    assert engine.scheduler.counts.num_preemptions > 0


def test_seeded_sampling_is_the_same_alone_and_in_a_crowd(engine: InProcessEngine, prompts: list[list[int]]) -> None:
    def seeded(seed: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=24, temperature=0.9, top_p=0.95, top_k=50, seed=seed, ignore_eos=True, repetition_penalty=1.1
        )

    crowd = engine.generate(prompts[:20], [seeded(number) for number in range(20)])

    for number in (0, 7, 13, 19):
        assert engine.generate([prompts[number]], [seeded(number)])[0] == crowd[number]
    assert engine.generate([prompts[7]], [seeded(8)])[0] != crowd[7]


def test_logprobs_are_those_of_transformers(model_folder: Path, reference: Any, prompts: list[list[int]]) -> None:
    asked = [prompt for prompt in prompts if len(prompt) < 100][::4]
    engine = InProcessEngine(model_folder, EngineSettings(device="cpu", max_num_seqs=8))
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, num_logprobs=5)
    for prompt in asked:
        engine.scored.clear()
        [output] = engine.generate([prompt], [sampling])

        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)
        for place, entry in enumerate(engine.scored):
            assert entry.token == output[place]
            assert entry.logprob == pytest.approx(float(expected[place, entry.token]), abs=1e-3)
            assert entry.logprobs == pytest.approx(expected[place].topk(5).values.tolist(), abs=1e-3)
        assert len(engine.scored) == 6
