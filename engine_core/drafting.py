"""Speculative decoding: which rows get drafts, and how many of them are what would have been drawn anyway. No torch.

A draft is exact: a position's draw depends on the tokens before it, the request's seed and the position alone, so a drafted
token that is equal to its draw is the token of the text, and the first one that is not is replaced by its draw. Drafts stand
in `BatchState.token_ids` behind the known tokens; what was refused there, and its K/V, is written over later.

A row drafts nothing when its draw depends on more than that: penalties, a grammar, bad words, logprobs, a limit on
thinking, fewer tokens than min_tokens. A stop id is never drafted (the pass that draws it ends the sequence anyway),
nor is a last token of the length limit: so no accepted run reaches beyond an end.
"""

from dataclasses import dataclass, field

import numpy as np

from engine_core.batch_state import BatchState
from engine_core.ngram_proposer import NgramProposer
from engine_core.plan import Int32Array, Rows, StepPlan
from ipc.messages import NO_LOGPROBS


@dataclass(slots=True)
class DraftCounts:
    """Ever-growing, for the metrics."""

    num_drafts: int = 0  # passes of one sequence that had drafted tokens
    num_tokens: int = 0
    accepted_per_place: list[int] = field(default_factory=list)  # tokens that were right, by place in their draft

    def note(self, num_drafts: Int32Array, num_accepted: Int32Array) -> None:
        """Of one pass: tokens drafted for each of its entries, and how many of them were right."""
        self.num_drafts += int(np.count_nonzero(num_drafts))
        self.num_tokens += int(num_drafts.sum())
        for place in range(int(num_accepted.max(initial=0))):
            self.accepted_per_place[place] += int(np.count_nonzero(num_accepted > place))


class Drafter:
    def __init__(self, state: BatchState, proposer: NgramProposer) -> None:
        self.max_tokens = proposer.max_tokens
        self._state, self._proposer = state, proposer

    def draft(self, rows: Rows, budget: int) -> Int32Array:
        """Write drafts for decoding rows, `budget` tokens at most; (len(rows),) how many each has."""
        state, num_drafts = self._state, np.zeros(len(rows), np.int32)
        room = np.minimum(state.max_total_len[rows] - state.num_tokens[rows] - 1, self.max_tokens)
        for entry in np.flatnonzero(self._may_draft(rows) & (room > 0)).tolist():
            row, known = int(rows[entry]), int(state.num_tokens[rows[entry]])
            draft = self._proposer.propose(state.token_ids[row, :known])[: min(int(room[entry]), budget)]
            is_stop = np.isin(draft, state.stop_ids[row])
            if is_stop.any():
                draft = draft[: int(is_stop.argmax())]
            state.token_ids[row, known : known + len(draft)] = draft
            num_drafts[entry] = len(draft)
            budget -= len(draft)
        return num_drafts

    def _may_draft(self, rows: Rows) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        state = self._state
        return np.asarray(
            (state.presence_penalty[rows] == 0.0)
            & (state.frequency_penalty[rows] == 0.0)
            & (state.repetition_penalty[rows] == 1.0)
            & ~state.has_grammar[rows]
            & ~state.has_bad_words[rows]
            & ~state.has_thinking_limit[rows]
            & (state.num_logprobs[rows] == NO_LOGPROBS)
            & (state.num_tokens[rows] - state.num_prompt[rows] >= state.min_tokens[rows])
        )


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Where a plan with drafts draws: after every known token that gets a sample, and after each of its drafts."""

    rows: Rows  # (m,) of BatchState; a row stands once and once more per draft
    ahead: Int32Array  # (m,) drafts before this draw
    tokens: Rows  # (m,) places among the plan's tokens
    firsts: Rows  # one per sampled row: its first draw

    def verified(self, state: BatchState, token_ids: Int32Array) -> tuple[Int32Array, Int32Array]:
        """(m,) drawn ids → per sampled row: how many drafts are what was drawn, and the draw behind them."""
        has_draft = np.append(self.ahead[1:] > 0, False)
        drafts = state.token_ids[
            self.rows, np.minimum(state.num_tokens[self.rows] + self.ahead, state.max_model_len - 1)
        ]
        misses = np.flatnonzero(~has_draft | (drafts != token_ids))
        ends = misses[np.searchsorted(misses, self.firsts)]
        return (ends - self.firsts).astype(np.int32), token_ids[ends]


def draws_of(plan: StepPlan) -> Draws:
    """Of a plan that has drafts."""
    assert plan.num_drafts is not None
    counts = plan.num_drafts[plan.samples] + 1
    firsts = np.cumsum(counts) - counts
    ahead = counting_up(counts)
    known = (np.cumsum(plan.num_new_tokens)[plan.samples] - counts).astype(np.intp)  # the last known token of each
    return Draws(np.repeat(plan.sampled_rows, counts), ahead, np.repeat(known, counts) + ahead, firsts.astype(np.intp))


def counting_up(counts: Int32Array) -> Int32Array:
    """0, 1, … for each of these counts, end to end."""
    firsts = np.cumsum(counts) - counts
    return (np.arange(int(counts.sum())) - np.repeat(firsts, counts)).astype(np.int32)
