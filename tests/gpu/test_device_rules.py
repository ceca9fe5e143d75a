"""Rules and log-probabilities on the device are those of the host sampler, step by step, whatever else is in the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine_core.batch_state import BatchState
from engine_core.plan import StepResult
from engine_core.sampler import Sampler
from engine_core.sequence import Sequence
from ipc.messages import SamplingParams

VOCAB = 700
NUM_STEPS = 6
EOS = 3
PROMPT = [5, 6, 7, 5, 9, 11]


def state_of(params: list[SamplingParams], output: list[int]) -> BatchState:
    """Rows in another order than the step's, each with a prompt and what it has generated so far."""
    state = BatchState(max_num_seqs=len(params) + 2, max_model_len=256, block_size=16, eos_token_ids=(EOS,))
    for number, sampling in enumerate(params):
        tokens = np.array(PROMPT + output, np.int32)
        state.add(
            Sequence(
                stream_id=number + 1, request_id="", sampling=sampling, token_ids=tokens, num_prompt_tokens=len(PROMPT),
                max_total_len=200, arrival=number, arrival_ns=0, block_links=[], is_cacheable=False, is_streaming=True,
            )
        )  # fmt: skip
    return state


def fields_of(state: BatchState, rows: np.ndarray[Any, Any], device: torch.device) -> dict[str, Tensor]:
    """As StepBuffers sends them."""
    seeds = state.seed[rows].view(np.int32).reshape(-1, 2)
    columns = {
        "temperatures": state.temperature[rows].view(np.int32), "top_ks": state.top_k[rows],
        "top_ps": state.top_p[rows].view(np.int32), "min_ps": state.min_p[rows].view(np.int32),
        "seeds_low": seeds[:, 0], "seeds_high": seeds[:, 1], "sampled_rows": rows.astype(np.int32),
        "draws": (state.num_tokens - state.num_prompt)[rows],
    }  # fmt: skip
    return {name: torch.from_numpy(np.ascontiguousarray(column)).to(device) for name, column in columns.items()}


def logits_of(step: int, num_rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn((num_rows, VOCAB), generator=generator) * 3).to(dtype).to(device)


def run(
    params: list[SamplingParams], device: torch.device, *, output: list[int] | None = None, is_drawn_from: Any = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[list[list[int]], list[list[int]], list[tuple[dict[int, Any], dict[int, Any]]]]:  # fmt: skip
    """Tokens of each row over some steps, on the device and by the host's sampler from the same logits; and both's scores.
    The host's are the text. Every row is in the step; those with rules or scores are some of its places."""
    from engine_core.device_rules import DeviceRules
    from engine_core.device_sampler import sample, scratch_for
    from engine_core.device_scores import DeviceScorer
    from engine_core.rule_records import has_rules, record_of_or_none

    state = state_of(params, output or [])
    host, rules = Sampler(state), DeviceRules(state, VOCAB, device)
    scorer = DeviceScorer(state, rules.records, state.max_num_seqs)
    rows = np.arange(len(params))[::-1].copy()
    records = {row: record_of_or_none(state, row) for row in rows.tolist()}
    rules.send({row: record for row, record in records.items() if record is not None})
    last_tokens = torch.zeros(state.max_num_seqs + 1, dtype=torch.int32, device=device)
    drawn = torch.zeros(len(rows), dtype=torch.int32, device=device)
    scratch = scratch_for(len(rows), VOCAB, device)
    ours, theirs, scores = [], [], []
    for step in range(NUM_STEPS):
        logits = logits_of(step, len(rows), device, dtype) if is_drawn_from is None else is_drawn_from(step).to(device)
        fields = fields_of(state, rows, device)
        sample(logits, fields, last_tokens, drawn, scratch)
        ruled, scored = np.flatnonzero(has_rules(state, rows)), np.flatnonzero(state.num_logprobs[rows] >= 0)
        if len(ruled):
            places = torch.from_numpy(ruled.astype(np.int32)).to(device)
            rules.sample(logits, fields, places, last_tokens, drawn)
        pending = None
        if len(scored):
            places = torch.from_numpy(scored.astype(np.int32)).to(device)
            pending = scorer.score(logits, fields, places, drawn, rows[scored], scored)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ids = drawn.cpu().numpy()
        expected: StepResult = host.sample(logits.float().cpu(), rows)
        if pending is not None:
            scores.append((pending.scores(ids), expected.scores))
        ours.append(ids.tolist())
        theirs.append(
            [-1 if row in expected.failures else int(t) for row, t in zip(rows, expected.token_ids, strict=True)]
        )
        state.token_ids[rows, state.num_tokens[rows]] = expected.token_ids
        state.num_tokens[rows] += 1
        if ours[-1] != theirs[-1]:
            break
    return ours, theirs, scores


def asked(temperature: float, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=100, temperature=temperature, seed=7, **fields)


RULES: list[dict[str, Any]] = [
    {},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "presence_penalty": -0.5, "frequency_penalty": 0.01},
    {"logit_bias": tuple((token, 7.5 - token) for token in range(0, VOCAB, 4))},
    {"logit_bias": ((8, 100.0),), "presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"allowed_token_ids": (1, 4, 31, 32, 33, 64, 699)},
    {"allowed_token_ids": (1, 4, 40), "logit_bias": ((4, -3.0), (50, 90.0)), "repetition_penalty": 2.0},
    {"min_tokens": 4, "logit_bias": ((EOS, 90.0),)},
    {"min_tokens": 4, "stop_token_ids": tuple(range(10, 600)), "allowed_token_ids": tuple(range(5, 620))},
    {"bad_words": tuple((token,) for token in range(0, 690, 7)), "repetition_penalty": 1.2},
    {"bad_words": ((8, 8), (8, 9)), "logit_bias": ((8, 90.0), (9, 80.0))},
    {"bad_words": ((8, 9, 8), (9, 8, 9, 8), (1, 2)), "logit_bias": ((8, 90.0), (9, 89.0)), "presence_penalty": 2.0},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("output", [[], [8, 9, 8, 9, 8, *range(100, 170), 8, 9, 8]], ids=["fresh", "resumed"])
def test_rules_are_those_of_the_host(
    device: torch.device, temperature: float, output: list[int], dtype: torch.dtype
) -> None:
    ours, theirs, _ = run([asked(temperature, **rules) for rules in RULES], device, output=output, dtype=dtype)

    assert ours == theirs
    assert len(ours) == NUM_STEPS


def test_cuts_see_what_the_rules_left(device: torch.device) -> None:
    cuts: list[dict[str, Any]] = [
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
    ]

    ours, theirs, _ = run([asked(1.3, **cut, **rules) for rules in RULES[1:6] for cut in cuts], device)

    assert ours == theirs


def test_a_penalty_smaller_than_a_step_of_16_bits_counts(device: torch.device) -> None:
    """64 and 64.5 are neighbours in bf16."""
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, 40], logits[0, 41] = 64.5, 64.0
    params = [asked(0.0, presence_penalty=0.3, frequency_penalty=0.3)]

    ours, theirs, _ = run(params, device, is_drawn_from=lambda _step: logits.to(torch.bfloat16))

    assert ours == theirs == [[40], [41], [40], [40], [41], [40]]


def test_a_row_that_may_draw_nothing_fails_alone(device: torch.device) -> None:
    """Its bad word is all that is allowed."""
    params = [asked(1.0), asked(1.0, allowed_token_ids=(5,), bad_words=((5,),)), asked(1.0, presence_penalty=1.0)]

    ours, theirs, _ = run(params, device)

    assert ours == theirs
    assert [ids[1] for ids in ours] == [-1] * NUM_STEPS


def test_more_rows_than_are_edited_at_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.device_rules.MAX_EDITED_ROWS", 4)

    ours, theirs, _ = run([asked(1.0, frequency_penalty=0.1 * number) for number in range(11)], device)

    assert ours == theirs


def test_log_probabilities_are_the_models_own(device: torch.device) -> None:
    params = [
        asked(1.0, num_logprobs=0),
        asked(1.0),
        asked(0.0, num_logprobs=20),
        asked(1.0, num_logprobs=3, presence_penalty=1.0, allowed_token_ids=(9, 10, 11)),
        asked(1.0, num_logprobs=0, logprob_token_ids=(5, 4, 699), logit_bias=((5, 90.0),)),
        asked(1.0, num_logprobs=0, logprob_token_ids=tuple(range(1, 128))),
    ]

    ours, theirs, scores = run(params, device)

    assert ours == theirs and len(scores) == NUM_STEPS
    for own, expected in scores:
        assert own.keys() == expected.keys() == {0, 2, 3, 4, 5}
        for row, score in own.items():
            wanted = expected[row]
            assert score.rank == wanted.rank
            assert score.logprob == pytest.approx(wanted.logprob, abs=1e-5)
            assert score.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
            assert len(score.ids) == len(wanted.ids) == len(set(score.ids))
            if row >= 4:  # asked by name
                assert score.ids == wanted.ids
            else:  # equal logits of 16 bits may be in another order
                assert {t for t, p in zip(score.ids, score.logprobs, strict=True) if p > min(score.logprobs)} <= set(
                    wanted.ids
                )


def test_what_does_not_fit_into_a_record_is_left_to_the_host() -> None:
    from engine_core.rule_records import RECORD_WORDS, record_of_or_none

    fitting = {"bad_words": (tuple(range(65)),)}
    params = [
        asked(1.0, **fitting),
        asked(1.0, bad_words=(tuple(range(66)),)),
        asked(1.0, min_tokens=1, stop_token_ids=tuple(range(RECORD_WORDS))),
    ]
    state = state_of(params, [])

    assert [record_of_or_none(state, row) is None for row in range(3)] == [False, True, True]
