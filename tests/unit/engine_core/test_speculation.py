"""Prompt lookup: with drafts and without, a sequence gets the same tokens. Tiny random weights."""

from typing import Any

import msgspec
import numpy as np
import pytest

from config.settings import EngineSettings
from config.speculative import SpeculativeConfig, speculative_config
from engine_core.batch_state import BatchState
from engine_core.errors import CannotBoot
from engine_core.ngram_proposer import NgramProposer
from engine_core.process import build_drafter
from engine_core.scheduler import Scheduler, SchedulerCounts
from engine_core.sequence import Sequence
from ipc.block_hash import HASH_BYTES, chain
from ipc.messages import SamplingParams
from ipc.record import Failure
from tests.unit.engine_core.test_model_runner import MODEL, build

CONFIG = '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":1,"prompt_lookup_max":3}'


def proposer(num_tokens: int, shortest: int, longest: int) -> NgramProposer:
    return NgramProposer(SpeculativeConfig("ngram", num_tokens, shortest, longest))


@pytest.mark.parametrize(
    ("tokens", "shortest", "longest", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2], 2, 4, [3, 4, 5]),
        ([9, 2, 3, 4, 7, 1, 2, 5, 6, 7, 1, 2], 1, 3, [5, 6, 7]),  # the longer n-gram wins
        ([1, 2, 7, 7, 7, 1, 2, 8, 8, 8, 1, 2], 2, 2, [8, 8, 8]),  # the last of equals
        ([4, 4, 4, 4, 4], 2, 3, [4, 4]),  # none has three behind it: the first
        ([1, 2, 3], 1, 3, []),
        ([1, 5, 2, 5], 2, 3, []),  # one token is too few
        ([5], 1, 2, []),
    ],
)
def test_what_followed_the_longest_ngram_before_is_proposed(
    tokens: list[int], shortest: int, longest: int, draft: list[int]
) -> None:
    assert proposer(3, shortest, longest).propose(np.array(tokens, np.int32)).tolist() == draft


class Run:
    """What came of the prompts of one engine: streamed and delivered tokens."""

    def __init__(
        self, prompts: list[list[int]], params: list[SamplingParams], is_streaming: bool, **engine: Any
    ) -> None:
        runner, _ = build(max_num_seqs=4, **engine)
        settings = EngineSettings(
            **{key: value for key, value in engine.items() if key in ("speculative_config", "enable_prefix_caching")}
        )
        state: BatchState = runner._state
        scheduler = Scheduler(
            state, runner.num_blocks, engine["max_num_batched_tokens"], drafter=build_drafter(settings, state)
        )
        self.outputs: dict[int, list[int]] = {n: [] for n in range(1, len(prompts) + 1)}
        for number, (prompt, sampling) in enumerate(zip(prompts, params, strict=True), 1):
            token_ids = np.array(prompt, np.int32)
            links = chain(token_ids.tobytes(), state.block_size)
            scheduler.add(
                Sequence(
                    stream_id=number, request_id="", sampling=sampling, token_ids=token_ids,
                    num_prompt_tokens=len(prompt), max_total_len=min(len(prompt) + sampling.max_tokens, 64),
                    arrival=number, arrival_ns=0, is_streaming=is_streaming,
                    block_links=[links[at : at + HASH_BYTES] for at in range(0, len(links), HASH_BYTES)],
                    is_cacheable=settings.enable_prefix_caching and bool(links),
                )
            )  # fmt: skip
        self.finishes: dict[int, tuple[int, int]] = {}
        self.num_steps = 0
        while scheduler.has_work:
            plan = scheduler.schedule()
            assert plan is not None and plan.num_tokens <= engine["max_num_batched_tokens"]
            self.num_steps += 1
            launched = runner.launch(plan)
            scheduler.advance(plan)
            tokens = scheduler.commit(plan, launched.result())
            for number, token in zip(tokens.numbers.tolist(), tokens.token_ids.tolist(), strict=True):
                self.outputs[number].append(token)
            for ending in scheduler.take_endings():
                assert not isinstance(ending.record, Failure)
                self.finishes[ending.record.stream] = (ending.record.num_output_tokens, ending.record.stop_token_id)
                if ending.output_ids is not None:
                    self.outputs[ending.record.stream] += ending.output_ids.tolist()
            scheduler.check_integrity()
        self.counts: SchedulerCounts = scheduler.counts


def random_prompts(seed: int) -> list[list[int]]:
    """With repeats, and with beginnings in common."""
    generator = np.random.default_rng(seed)
    common = generator.integers(0, 50, 17).tolist()
    return [
        common[: int(generator.integers(1, 18))] + generator.integers(0, 6, n).tolist() for n in (1, 5, 9, 14, 3, 12)
    ]


@pytest.mark.parametrize("is_streaming", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "engine",
    [
        {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 16},
        {"max_num_batched_tokens": 9, "num_gpu_blocks_override": 16, "enable_prefix_caching": False},  # chunks
        {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 5},  # preemptions
    ],
)
def test_the_text_is_the_same_with_drafts_as_without(engine: dict[str, Any], seed: int, is_streaming: bool) -> None:
    prompts = random_prompts(seed)
    params = [
        SamplingParams(temperature=0.0, max_tokens=40),
        SamplingParams(temperature=0.0, max_tokens=7, stop_token_ids=tuple(range(0, 50, 7)), min_tokens=3),
        SamplingParams(temperature=0.3, max_tokens=30, seed=5),
        SamplingParams(temperature=0.05, max_tokens=40, top_k=3, seed=6),
        SamplingParams(temperature=0.0, max_tokens=20, frequency_penalty=0.5),
        SamplingParams(temperature=0.0, max_tokens=40, stop_token_ids=(1, 2, 3, 11)),
    ]

    plain = Run(prompts, params, is_streaming, **engine)
    drafted = Run(prompts, params, is_streaming, **engine, speculative_config=CONFIG)

    assert drafted.outputs == plain.outputs
    assert drafted.finishes == plain.finishes
    assert drafted.counts.drafts.num_tokens > sum(drafted.counts.drafts.accepted_per_place) > 0
    assert plain.counts.drafts.num_drafts == 0


def test_rows_that_need_more_than_their_tokens_draft_nothing() -> None:
    prompts = [[1, 2, 3, 1, 2, 3, 1, 2]] * 6
    base = SamplingParams(temperature=0.0, max_tokens=12)
    own: list[dict[str, Any]] = [
        {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"repetition_penalty": 1.1}, {"num_logprobs": 2},
        {"min_tokens": 12}, {"bad_words": ((1, 2),)},
    ]  # fmt: skip
    params = [msgspec.structs.replace(base, **fields) for fields in own]

    run = Run(prompts, params, False, max_num_batched_tokens=64, speculative_config=CONFIG)

    assert run.counts.drafts.num_drafts == 0
    assert [count for count, _ in run.finishes.values()] == [12] * 6


def test_no_sampling_parameter_is_new_to_the_drafter() -> None:
    """A new one that makes a draw depend on the tokens drawn before it belongs into `Drafter._may_draft`."""
    same_at_every_place = {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop_token_ids", "ignore_eos", "logit_bias",
        "allowed_token_ids", "num_prompt_logprobs",
    }  # fmt: skip
    keeps_from_drafting = {
        "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "num_logprobs", "thinking", "grammar",
        "bad_words", "logprob_token_ids",
    }  # fmt: skip

    assert set(SamplingParams.__struct_fields__) == same_at_every_place | keeps_from_drafting


def test_every_accepted_token_saves_a_pass() -> None:
    """A tiny greedy model falls into a loop, and its loop is drafted."""
    params = [SamplingParams(temperature=0.0, max_tokens=50)]

    plain = Run([[3, 1, 4]], params, True, max_num_batched_tokens=64)
    drafted = Run([[3, 1, 4]], params, True, max_num_batched_tokens=64, speculative_config=CONFIG)

    places = drafted.counts.drafts.accepted_per_place
    assert plain.num_steps == 50
    assert drafted.num_steps == 50 - sum(places) < 30
    assert places == sorted(places, reverse=True), "a place is right only where all before it are"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"method":"eagle","num_speculative_tokens":2}', "eagle"),
        ('{"method":"ngram"}', "num_speculative_tokens"),
        ('{"method":"ngram","num_speculative_tokens":2,"model":"x"}', "model"),
        ('{"method":"ngram","num_speculative_tokens":0}', ">= 1"),
        ('{"method":"ngram","num_speculative_tokens":2,"prompt_lookup_min":4,"prompt_lookup_max":2}', "above"),
        ("ngram", "JSON"),
    ],
)
def test_what_is_not_served_is_refused_by_name(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        speculative_config(text)


def test_one_lookup_length_stands_for_both() -> None:
    config = speculative_config('{"method":"ngram","num_speculative_tokens":2,"prompt_lookup_max":3}')

    assert (config.prompt_lookup_min, config.prompt_lookup_max) == (3, 3)


def test_a_device_that_does_not_verify_drafts_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    with pytest.raises(CannotBoot, match="CPU only"):
        build(MODEL, device="cuda", speculative_config=CONFIG)
