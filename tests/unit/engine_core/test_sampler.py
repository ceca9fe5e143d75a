"""Sampling by vLLM's semantics: masks and penalties, filters against a naive reference, distributions, failures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine_core.batch_state import BatchState
from engine_core.plan import DEAD_END, NO_FINITE_LOGITS, Rows
from engine_core.sampler import Sampler
from engine_core.sequence import Sequence
from ipc.messages import NO_LOGPROBS, SamplingParams, Thinking

VOCAB = 50
EOS = 2


def state_with(
    *params: SamplingParams, prompt: tuple[int, ...] = (5, 6, 7), output: tuple[int, ...] = ()
) -> BatchState:
    state = BatchState(max_num_seqs=max(8, len(params)), max_model_len=64, block_size=16, eos_token_ids=(EOS,))
    for number, sampling in enumerate(params):
        tokens = np.array([*prompt, *output], np.int32)
        state.add(
            Sequence(
                stream_id=number + 1, request_id="r", sampling=sampling, token_ids=tokens,
                num_prompt_tokens=len(prompt), max_total_len=64, arrival=number, arrival_ns=0,
            )
        )  # fmt: skip
    return state


def rows(count: int) -> Rows:
    return np.arange(count)


def sampled(state: BatchState, logits: torch.Tensor) -> list[int]:
    token_ids: list[int] = Sampler(state).sample(logits.clone(), rows(len(logits))).token_ids.tolist()
    return token_ids


def greedy(**fields: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 9, "temperature": 0.0, **fields})  # type: ignore[arg-type]


def descending(best: int, second: int) -> torch.Tensor:
    """Logits that are largest at `best`, then at `second`."""
    logits = torch.zeros(1, VOCAB)
    logits[0, best], logits[0, second] = 5.0, 4.0
    return logits


def test_greedy_takes_the_largest() -> None:
    assert sampled(state_with(greedy()), descending(9, 3)) == [9]


def test_a_row_whose_own_rule_raises_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_with(greedy(presence_penalty=1.0), greedy(presence_penalty=1.0), greedy())
    logits = descending(9, 3).repeat(3, 1)
    output, broken = Sampler._output, 1

    def output_of(sampler: Sampler, row: int) -> NDArray[np.int32]:
        if row == broken:
            raise ZeroDivisionError("no rule of ours")
        return output(sampler, row)

    monkeypatch.setattr(Sampler, "_output", output_of)

    result = Sampler(state).sample(logits, rows(3))

    assert list(result.failures) == [broken] and "ZeroDivisionError" in result.failures[broken].message
    assert result.token_ids[[0, 2]].tolist() == [9, 9]


def test_a_lost_device_is_no_rows_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_sampler: Sampler, _row: int) -> Rows:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Sampler, "_output", lose)

    with pytest.raises(torch.AcceleratorError):
        Sampler(state_with(greedy(presence_penalty=1.0))).sample(descending(9, 3), rows(1))


def test_no_stop_id_before_min_tokens() -> None:
    early = state_with(greedy(min_tokens=2, stop_token_ids=(9,)), output=(1,))
    late = state_with(greedy(min_tokens=2, stop_token_ids=(9,)), output=(1, 1))

    assert sampled(early, descending(9, 3)) == [3]
    assert sampled(early, descending(EOS, 3)) == [3]
    assert sampled(late, descending(9, 3)) == [9]


def test_an_end_that_is_ignored_is_put_off_by_min_tokens_all_the_same() -> None:
    """As in vLLM, whose greedy texts differ otherwise."""
    early = state_with(greedy(min_tokens=2, ignore_eos=True), output=(1,))
    late = state_with(greedy(min_tokens=2, ignore_eos=True), output=(1, 1))

    assert sampled(early, descending(EOS, 3)) == [3]
    assert sampled(late, descending(EOS, 3)) == [EOS]


def test_logit_bias_is_added() -> None:
    assert sampled(state_with(greedy(logit_bias=((3, 2.0),))), descending(9, 3)) == [3]
    assert sampled(state_with(greedy(logit_bias=((9, -100.0),))), descending(9, 3)) == [3]


def test_presence_and_frequency_see_the_output_only() -> None:
    params = greedy(presence_penalty=0.6, frequency_penalty=0.3)

    assert sampled(state_with(params, prompt=(9, 9, 9)), descending(9, 3)) == [9]
    assert sampled(state_with(params, output=(9,)), descending(9, 3)) == [9]  # 5 - 0.6 - 0.3 > 4
    assert sampled(state_with(params, output=(9, 9)), descending(9, 3)) == [3]  # 5 - 0.6 - 0.6 < 4


def test_repetition_sees_prompt_and_output_and_shrinks_towards_zero_or_away() -> None:
    positive = descending(9, 3)
    negative = torch.full((1, VOCAB), -9.0)
    negative[0, 9], negative[0, 3] = -1.0, -1.5

    assert sampled(state_with(greedy(repetition_penalty=1.5), prompt=(9,)), positive) == [3]
    assert sampled(state_with(greedy(repetition_penalty=2.0), output=(9,)), negative) == [3]
    assert sampled(state_with(greedy(repetition_penalty=1.5), prompt=(4,)), positive) == [9]


def naive_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The definition, in float64: temperature, min_p, top_k, top_p."""
    scaled = logits.double() / params.temperature
    probabilities = scaled.softmax(-1)
    scaled[probabilities < params.min_p * probabilities.max()] = -torch.inf
    if params.top_k:
        scaled[scaled < scaled.topk(min(params.top_k, len(scaled))).values[-1]] = -torch.inf
    probabilities = scaled.softmax(-1)
    if params.top_p < 1.0:
        order = probabilities.argsort(descending=True, stable=True)
        before = probabilities[order].cumsum(0) - probabilities[order]
        probabilities[order[before >= params.top_p]] = 0.0
    return probabilities / probabilities.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, VOCAB + 5),
    min_p=st.floats(0.0, 0.5),
)
def test_only_what_the_filters_keep_is_drawn(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    fields = {"max_tokens": 9, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    params = [SamplingParams(**fields, seed=number) for number in range(32)]  # type: ignore[arg-type]
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    allowed = naive_probabilities(logits, params[0])

    drawn = sampled(state_with(*params), logits.repeat(32, 1))

    borderline = 1e-6  # float32 may see a cut on the other side of such a token
    assert all(allowed[token] > 0 or naive_margin(logits, params[0], token) < borderline for token in drawn)


def naive_margin(logits: torch.Tensor, params: SamplingParams, token: int) -> float:
    """How far a token that was cut is from not being cut, in probability."""
    loose = SamplingParams(
        max_tokens=9,
        temperature=params.temperature,
        top_p=min(1.0, params.top_p + 1e-6),
        top_k=params.top_k,
        min_p=max(0.0, params.min_p - 1e-6),
    )
    return 0.0 if naive_probabilities(logits, loose)[token] > 0 else 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.9, "temperature": 1.3},
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(fields: dict[str, float]) -> None:
    num_draws = 20_000
    base = SamplingParams(**{"max_tokens": 9, "temperature": 1.0, **fields})  # type: ignore[arg-type]
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 1.5
    expected = naive_probabilities(logits, base).numpy() * num_draws
    state = state_with(base)
    state.seed = np.arange(num_draws, dtype=np.uint64)
    for name in ("temperature", "top_p", "top_k", "min_p", "num_tokens", "num_prompt", "min_tokens"):
        setattr(state, name, np.repeat(getattr(state, name)[:1], num_draws))
    state.presence_penalty = state.frequency_penalty = np.zeros(num_draws, np.float32)
    state.repetition_penalty = np.ones(num_draws, np.float32)
    state.logit_bias = [()] * num_draws
    state.num_logprobs = np.full(num_draws, NO_LOGPROBS)
    state.is_restricted = np.zeros(num_draws, np.bool_)
    state.has_thinking_limit = np.zeros(num_draws, np.bool_)
    state.has_grammar = np.zeros(num_draws, np.bool_)
    state.has_bad_words = np.zeros(num_draws, np.bool_)

    drawn = np.bincount(sampled(state, logits.repeat(num_draws, 1)), minlength=VOCAB)

    kept = expected > 5
    assert drawn[expected == 0].sum() == 0
    chi_square = ((drawn[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < kept.sum() + 5 * np.sqrt(2 * kept.sum())


def test_logprobs_are_the_models_own_and_only_for_those_who_ask() -> None:
    params = [
        SamplingParams(max_tokens=9, temperature=0.0),
        SamplingParams(max_tokens=9, temperature=0.0, logit_bias=((3, 100.0),), num_logprobs=2),
        SamplingParams(max_tokens=9, temperature=5.0, seed=1, top_k=9, num_logprobs=0),
    ]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5))
    expected = torch.log_softmax(logits, -1)

    result = Sampler(state_with(*params)).sample(logits.clone(), np.arange(3))

    assert sorted(result.scores) == [1, 2]
    biased, random = result.scores[1], result.scores[2]
    assert result.token_ids[1] == 3
    assert biased.logprob == pytest.approx(float(expected[1, 3]))
    assert biased.rank == 1 + int((expected[1] > expected[1, 3]).sum())
    assert biased.ids == expected[1].topk(2).indices.tolist()
    assert biased.logprobs == pytest.approx(expected[1].topk(2).values.tolist())
    assert random.ids == [] == random.logprobs
    assert random.logprob == pytest.approx(float(expected[2, result.token_ids[2]]))


def test_a_spent_budget_of_thinking_forces_the_end_marker_and_then_nothing() -> None:
    thinking = Thinking(max_tokens=2, end_ids=(20, 21), start_ids=(10,), waits_for_start=False)
    params = greedy(thinking=thinking, allowed_token_ids=(9,))

    outputs = [(), (9,), (9, 9), (9, 9, 20), (9, 9, 20, 21), (9, 9, 20, 21, 9)]

    drawn = [sampled(state_with(params, output=output), descending(9, 3))[0] for output in outputs]
    assert drawn == [9, 9, 20, 21, 9, 9]


def test_a_restricted_row_draws_only_what_is_allowed_and_the_others_anything() -> None:
    params = [
        SamplingParams(max_tokens=9, temperature=0.0, allowed_token_ids=(11, 4)),
        SamplingParams(max_tokens=9, temperature=0.0),
        SamplingParams(max_tokens=9, temperature=9.0, seed=1, top_p=0.99, allowed_token_ids=(7,)),
    ]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(8))

    best = 11 if logits[0, 11] > logits[0, 4] else 4
    assert sampled(state_with(*params), logits) == [best, int(logits[1].argmax()), 7]


def test_a_seeded_row_draws_the_same_in_any_company() -> None:
    params = [SamplingParams(max_tokens=9, temperature=1.0, seed=n, top_p=0.9) for n in range(6)]
    others = [SamplingParams(max_tokens=9, temperature=0.3, seed=n + 50, top_k=3) for n in range(5)]
    logits = torch.randn(11, VOCAB, generator=torch.Generator().manual_seed(3))

    alone = [sampled(state_with(param), logits[n : n + 1])[0] for n, param in enumerate(params)]
    crowd = sampled(state_with(*params, *others), logits)

    assert crowd[:6] == alone


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_row_fails_alone(poison: float) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, 4] = 1.0
    logits[1, 7] = poison

    result = Sampler(state_with(greedy(), greedy(), SamplingParams(max_tokens=9, seed=1))).sample(logits, rows(3))

    assert result.failures == {1: NO_FINITE_LOGITS}
    assert result.token_ids[0] == 4


def test_rare_top_p_beyond_the_candidates_is_exact() -> None:
    """A flat distribution: the nucleus is wider than the candidates that are looked at first."""
    state = BatchState(max_num_seqs=1, max_model_len=8, block_size=4)
    sampling = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9, seed=0)
    state.add(
        Sequence(
            stream_id=1, request_id="r", sampling=sampling, token_ids=np.array([1], np.int32), num_prompt_tokens=1,
            max_total_len=8, arrival=0, arrival_ns=0,
        )
    )  # fmt: skip
    drawn = set()
    for seed in range(300):
        state.seed[0] = seed
        drawn.add(int(Sampler(state).sample(torch.zeros(1, 5000), rows(1)).token_ids[0]))

    assert max(drawn) > 3000 and len(drawn) > 250


@pytest.mark.parametrize(
    ("words", "output", "chosen"),
    [
        (((9,),), (), 3),  # a word of one token is never drawn
        (((4, 9),), (4,), 3),
        (((4, 9),), (4, 8), 9),  # what stands before it is not the word's beginning
        (((4, 9),), (), 9),
        (((8, 4, 9), (3,)), (8, 4), 0),
    ],
)
def test_a_bad_word_is_never_completed(
    words: tuple[tuple[int, ...], ...], output: tuple[int, ...], chosen: int
) -> None:
    """The prompt ends in the token 7, and is no part of a word."""
    assert sampled(state_with(greedy(bad_words=words), output=output), descending(9, 3)) == [chosen]
    assert sampled(state_with(greedy(bad_words=((7, 9),))), descending(9, 3)) == [9]


def test_a_row_that_bad_words_leave_nothing_is_the_requests_fault() -> None:
    state = state_with(greedy(bad_words=((9,),), allowed_token_ids=(9,)), greedy())

    result = Sampler(state).sample(descending(9, 3).repeat(2, 1), rows(2))

    assert result.failures == {0: DEAD_END} and result.token_ids[1] == 9


def test_logprobs_of_named_tokens_stand_behind_the_drawn_one() -> None:
    state = state_with(greedy(num_logprobs=0, logprob_token_ids=(30, 9, 3)), greedy(num_logprobs=2))

    scores = Sampler(state).sample(descending(9, 3).repeat(2, 1), rows(2)).scores

    logprobs = torch.log_softmax(descending(9, 3), -1)[0]
    assert scores[0].ids == [9, 30, 3] and scores[1].ids == [9, 3]
    assert scores[0].logprobs == pytest.approx(logprobs[[9, 30, 3]].tolist())
    assert scores[0].rank == 1 and scores[0].logprob == pytest.approx(float(logprobs[9]))
