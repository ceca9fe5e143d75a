"""Prompt lookup: with drafts and without, a sequence gets the same tokens. Tiny random weights."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from config.settings import EngineSettings
from config.speculative import SpeculativeConfig, speculative_config
from engine_core.batch_state import BatchState
from engine_core.drafting import Drafter, Pace, draws_of, in_single_tokens
from engine_core.ngram_proposer import NgramProposer
from engine_core.plan import StepPlan
from engine_core.process import build_drafter
from engine_core.scheduler import Scheduler, SchedulerCounts
from engine_core.sequence import Sequence
from ipc.block_hash import HASH_BYTES, chain
from ipc.messages import SamplingParams
from ipc.record import Failure
from tests.unit.engine_core.test_model_runner import build

CONFIG = '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":1,"prompt_lookup_max":3,"pauses":false}'


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


def test_a_pass_with_drafts_is_one_of_single_tokens() -> None:
    state = BatchState(max_num_seqs=4, max_model_len=32, block_size=4)
    state.token_ids[:] = np.arange(32)
    state.num_tokens[:] = 10
    rows = np.array([2, 0, 1], np.intp)
    plan = StepPlan(
        rows=rows, num_new_tokens=np.array([3, 1, 6], np.int32), context_lens=np.array([9, 9, 2], np.int32),
        samples=np.array([True, True, False]), num_decodes=2, num_tokens=10, freed_rows=rows[:0], changed_rows=rows[:0],
        tenancy=state.tenancy[rows], num_drafts=np.array([2, 0, 0], np.int32),
    )  # fmt: skip

    singles, draws = in_single_tokens(plan), draws_of(plan, state)

    assert singles.rows.tolist() == [2, 2, 2, 0, 1]
    assert singles.num_new_tokens.tolist() == [1, 1, 1, 1, 6]
    assert singles.context_lens.tolist() == [9, 10, 11, 9, 2]
    assert singles.sampled_rows.tolist() == draws.rows.tolist() == [2, 2, 2, 0]
    assert (singles.num_decodes, singles.num_tokens, singles.num_drafts) == (4, 10, None)
    assert [part.tolist() for part in draws.verified(np.array([10, 7, 5, 4], np.int32))] == [[1, 0], [7, 4]]


def turns_of(pace: Pace, num_steps: int, step_ns: Callable[[int, bool], int], accepted: int) -> list[int]:
    """Steps at which guessing begins or ends; a row of two gets `accepted` guesses right per step with guesses."""
    now_ns, states = 1, []
    for step in range(num_steps):
        pace.begin_step(2, now_ns)
        states.append(pace.is_awake)
        if pace.is_awake:
            pace.note(accepted)
        now_ns += step_ns(step, pace.is_awake)
    return [step for step in range(1, num_steps) if states[step] != states[step - 1]]


def test_guessing_that_does_not_pay_pauses_and_is_tried_again() -> None:
    """Guesses are right, but their steps take twice as long."""
    turns = turns_of(Pace(), 1200, lambda _step, is_awake: 200 if is_awake else 100, accepted=1)

    trials, pauses = np.diff(turns)[1::2].tolist(), np.diff(turns)[0::2].tolist()
    assert turns[0] == 31 and trials == [32, 32, 32]
    assert pauses == [32 + 128, 32 + 256, 32 + 512]


def test_guessing_goes_on_where_no_pause_is_wanted() -> None:
    assert turns_of(Pace(pauses=False), 600, lambda _step, is_awake: 200 if is_awake else 100, accepted=0) == []


def test_guessing_that_pays_goes_on_whatever_a_step_with_a_prefill_takes() -> None:
    def step_ns(step: int, is_awake: bool) -> int:
        return 10_000 if step % 10 == 0 else 120 if is_awake else 100

    turns = turns_of(Pace(), 1000, step_ns, accepted=1)

    assert [end - start for start, end in zip(turns[::2], turns[1::2], strict=False)] == [32] * (len(turns) // 2)
    assert len(turns) == 6


def test_no_pass_has_more_drafts_than_it_may() -> None:
    state = BatchState(max_num_seqs=3, max_model_len=32, block_size=4)
    for row in range(3):
        state.token_ids[row, :6] = (1, 2, 3, 1, 2, 3)
    state.num_tokens[:], state.max_total_len[:], state.num_prompt[:] = 6, 32, 6

    num_drafts = Drafter(state, proposer(3, 1, 1), Pace(), max_step_drafts=4).draft(np.arange(3), budget=100)

    assert num_drafts.tolist() == [3, 1, 0]
