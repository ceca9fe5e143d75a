"""Greedy output token for token equal to transformers', same weights, float32: alone and in every kind of crowd.

42 prompts of 1 to 1500 tokens, 64 new tokens each. Greedy output is at each place the likeliest token behind those before
it, so one pass of transformers over a prompt and its output tells for every place whether transformers would have written
the same, and an output that was judged once need not be judged again. Every sixth prompt is written by its `generate` too.
Kernels add in an order that depends on the shapes of the batch, so where the two largest logits are closer than float32 can
tell, either may be picked: a difference is accepted at such a tie only.
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
STRIDE = 6  # every so many-th prompt is asked alone, and written by `generate`
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)


class Reference:
    """transformers' own model."""

    def __init__(self, model: Any) -> None:  # Any: transformers' types promise less than it does
        self._model = model
        self._judged: set[tuple[int, ...]] = set()

    def generate(self, prompts: list[list[int]]) -> list[list[int]]:
        """All in one batch, padded on the left."""
        self._model.generation_config.eos_token_id = None
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            generated = self._model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
            )
        return [row[width:].tolist() for row in generated]

    def logits(self, prompt: list[int], output: list[int]) -> torch.Tensor:
        """(num_outputs, vocab_size): what each token of the output was picked from."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([prompt + output[:-1]]), logits_to_keep=len(output)).logits
        return logits[0]

    def assert_same(self, prompt: list[int], output: list[int], wanted: list[int]) -> None:
        """Token for token, up to a tie."""
        at = next((n for n, (ours, theirs) in enumerate(zip(output, wanted, strict=True)) if ours != theirs), None)
        if at is not None:
            logits = self.logits(prompt, wanted)[at]
            gap = float(logits[wanted[at]] - logits[output[at]])
            assert abs(gap) < TIE, f"prompt of {len(prompt)} tokens differs at output {at}: logits {gap} apart"

    def assert_greedy(self, prompts: list[list[int]], outputs: list[list[int]]) -> None:
        """Every token is the likeliest, but for ties of float32: TIE apart in logits of the order of 20."""
        for prompt, output in zip(prompts, outputs, strict=True):
            assert len(output) == NEW_TOKENS
            if (text := (*prompt, *output)) in self._judged:
                continue
            logits = self.logits(prompt, output)
            gaps = logits.max(-1).values - logits[range(NEW_TOKENS), output]
            at = int(gaps.argmax())
            assert gaps[at] < TIE, f"prompt of {len(prompt)} tokens, output {at}: logits {float(gaps[at])} apart"
            self._judged.add(text)


@pytest.fixture(scope="module")
def prompts(model_folder: Path) -> list[list[int]]:
    return parity_prompts(model_folder)


@pytest.fixture(scope="module")
def reference(model_folder: Path) -> Reference:
    return Reference(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))


def engine_for(folder: Path, **settings: object) -> InProcessEngine:
    return InProcessEngine(folder, EngineSettings(**{"max_num_seqs": 64, **settings}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[InProcessEngine]:
    yield engine_for(model_folder)


@pytest.mark.timeout(600)
def test_alone_and_as_generate_writes_it(
    engine: InProcessEngine, prompts: list[list[int]], reference: Reference
) -> None:
    asked = prompts if os.environ.get("PARITY_ALL") else prompts[::STRIDE]
    outputs = [engine.generate([prompt], [GREEDY])[0] for prompt in asked]
    written = reference.generate(prompts[::STRIDE])

    reference.assert_greedy(asked, outputs)
    for prompt, wanted in zip(prompts[::STRIDE], written, strict=True):
        reference.assert_same(prompt, outputs[asked.index(prompt)], wanted)


def test_all_together_and_again_out_of_the_prefix_cache(
    engine: InProcessEngine, prompts: list[list[int]], reference: Reference
) -> None:
    hits_before = engine.scheduler.counts.prefix_hits

    reference.assert_greedy(prompts, engine.generate(prompts, [GREEDY] * len(prompts)))
    reference.assert_greedy(prompts, engine.generate(prompts, [GREEDY] * len(prompts)))
    assert engine.scheduler.counts.prefix_hits - hits_before > sum(map(len, prompts)) // 2


def test_all_together_without_prefix_cache_in_chunks_of_64_tokens(
    model_folder: Path, prompts: list[list[int]], reference: Reference
) -> None:
    engine = engine_for(model_folder, enable_prefix_caching=False, max_num_batched_tokens=64)

    reference.assert_greedy(prompts, engine.generate(prompts, [GREEDY] * len(prompts)))
    assert engine.scheduler.counts.prefix_hits == 0


def test_with_a_pool_so_small_that_sequences_are_preempted(
    model_folder: Path, prompts: list[list[int]], reference: Reference
) -> None:
    engine = engine_for(model_folder, num_gpu_blocks_override=110)

    reference.assert_greedy(prompts, engine.generate(prompts, [GREEDY] * len(prompts)))
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


def test_logprobs_are_those_of_transformers(model_folder: Path, reference: Reference, prompts: list[list[int]]) -> None:
    asked = [prompt for prompt in prompts if len(prompt) < 100][::4]
    engine = InProcessEngine(model_folder, EngineSettings(device="cpu", max_num_seqs=8))
    sampling = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, num_logprobs=5)
    for prompt in asked:
        engine.scored.clear()
        [output] = engine.generate([prompt], [sampling])

        expected = torch.log_softmax(reference.logits(prompt, output), -1)
        for place, entry in enumerate(engine.scored):
            assert entry.token == output[place]
            assert entry.logprob == pytest.approx(float(expected[place, entry.token]), abs=1e-3)
            assert entry.logprobs == pytest.approx(expected[place].topk(5).values.tolist(), abs=1e-3)
        assert len(engine.scored) == 6
