"""Scores of prompts, against one log-softmax over everything at once."""

import numpy as np
import pytest
import torch

from engine_core.batch_state import BatchState
from engine_core.plan import StepPlan, TokenScores
from engine_core.prompt_scorer import SLICE_TOKENS, PromptScorer
from ipc.messages import NO_LOGPROBS

VOCAB = 30


def plan_of(state: BatchState, contexts: list[int], new: list[int]) -> StepPlan:
    rows, num_new, context_lens = (np.array(column) for column in (range(len(new)), new, contexts))
    return StepPlan(
        rows=rows.astype(np.intp),
        num_new_tokens=num_new.astype(np.int32),
        context_lens=context_lens.astype(np.int32),
        samples=context_lens + num_new >= state.num_tokens[rows],
        num_decodes=0,
        num_tokens=sum(new),
        freed_rows=np.zeros(0, np.intp),
        changed_rows=np.zeros(0, np.intp),
        tenancy=state.tenancy[rows],
    )


@pytest.mark.parametrize("chunk", [2, SLICE_TOKENS + 9, 150])
def test_chunks_and_slices_give_what_the_whole_prompt_gives(chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    num_tokens, hidden, head = 150, torch.randn(150, 8, generator=generator), torch.randn(8, VOCAB, generator=generator)
    state = BatchState(max_num_seqs=2, max_model_len=200, block_size=16)
    prompt = torch.randint(VOCAB, (num_tokens,), generator=generator)
    state.token_ids[0, :num_tokens] = prompt.numpy()
    state.num_prompt[:2] = state.num_tokens[:2] = num_tokens
    state.num_prompt_logprobs[:2] = (3, NO_LOGPROBS)
    scorer = PromptScorer(state, lambda states: states @ head)

    found: list[TokenScores] = []
    for start in range(0, num_tokens, chunk):
        states = hidden[start : start + chunk]
        both = torch.cat((states, states))
        scored = scorer.score(plan_of(state, [start, start], [len(states)] * 2), both)
        if start == num_tokens - 1:
            assert scored == {}, "what follows the last token is no part of the prompt"
            continue
        assert scored.keys() == {0} and scored[0].first_place == start + 1 == len(found) + 1
        found += scored[0].scores

    logprobs = torch.log_softmax(hidden @ head, -1)
    assert len(found) == num_tokens - 1
    for place, score in enumerate(found, 1):
        row, token = logprobs[place - 1], int(prompt[place])
        assert score.logprob == pytest.approx(float(row[token]), abs=1e-5)
        assert score.rank == int((row > row[token]).sum()) + 1
        assert score.ids == row.topk(3).indices.tolist()


def test_rows_that_decode_have_nothing_to_score() -> None:
    state = BatchState(max_num_seqs=2, max_model_len=64, block_size=16)
    state.num_prompt[:2], state.num_tokens[:2], state.num_prompt_logprobs[:2] = 5, 9, 0

    assert PromptScorer(state, lambda states: states).score(plan_of(state, [8, 5], [1, 1]), torch.zeros(2, VOCAB)) == {}
