"""Speculative decoding: which rows get drafts, and how many of them are what would have been drawn anyway. No torch.

A draft is exact: a position's draw depends on the tokens before it, the request's seed and the position alone, so a drafted
token that is equal to its draw is the token of the text, and the first one that is not is replaced by its draw. Drafts stand
in `BatchState.token_ids` behind the known tokens; what was refused there, and its K/V, is written over later.

A row drafts nothing when its draw depends on more than that: penalties, a grammar, bad words, logprobs, a limit on
thinking, fewer tokens than min_tokens. A stop id is never drafted (the pass that draws it ends the sequence anyway),
nor is a last token of the length limit: so no accepted run reaches beyond an end.

Guessing costs every row its turn in the pipeline (the next pass waits until the tokens of the last one are known) and the
wrong guesses their computation. What is faster is measured as it goes (`Pace`): while guessing does not pay, none is done.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from config.speculative import SpeculativeConfig
from engine_core.batch_state import BatchState
from engine_core.ngram_proposer import NgramProposer
from engine_core.plan import Int32Array, Rows, StepPlan
from ipc.messages import NO_LOGPROBS

MAX_STEP_DRAFTS = 256  # drafts of one pass: beyond, weights are no longer what its time goes to


def max_step_drafts(config: SpeculativeConfig, max_num_seqs: int) -> int:
    return min(MAX_STEP_DRAFTS, config.num_speculative_tokens * max_num_seqs)


TRIAL_STEPS = 32  # with guesses and as many without, to be compared
FIRST_TERM, LONGEST_TERM = 128, 2048  # steps that a finding holds for; doubled as long as it is found again
MIN_GAIN = 1.03  # less is noise


class Pace:
    """Whether guessing pays, by the clock: tokens per row and second in steps with it and without."""

    def __init__(self, pauses: bool = True) -> None:
        """Without `pauses` whatever it finds: guesses always."""
        self._pauses, self.is_awake = pauses, True
        self._steps_left, self._term = TRIAL_STEPS, FIRST_TERM
        self._is_trial = True
        self._steps_ns: list[int] = []
        self._num_rows = self._num_accepted = 0
        self._begun_ns = 0
        self._rate_awake = 0.0
        self._paid: bool | None = None

    def note(self, num_accepted: int) -> None:
        """So many guesses of a step were right."""
        self._num_accepted += num_accepted

    def begin_step(self, num_rows: int, now_ns: int) -> None:
        """A step with so many decodes: go on as before or change over."""
        if not self._pauses:
            return
        self._steps_left -= 1
        if self._begun_ns and self._is_trial:
            self._steps_ns.append(now_ns - self._begun_ns)
            self._num_rows += num_rows
        self._begun_ns = now_ns
        if self._steps_left > 0:
            return
        if not self._is_trial:
            self._try(is_awake=True)
        elif self.is_awake:
            self._rate_awake = self._rate()
            self._try(is_awake=False)
        else:
            self._settle(self._rate_awake > MIN_GAIN * self._rate())

    def _try(self, *, is_awake: bool) -> None:
        self.is_awake, self._is_trial, self._steps_left = is_awake, True, TRIAL_STEPS
        self._steps_ns, self._num_rows, self._num_accepted, self._begun_ns = [], 0, 0, 0

    def _settle(self, pays: bool) -> None:
        self._term = min(2 * self._term, LONGEST_TERM) if pays == self._paid else FIRST_TERM
        self._paid = pays
        self.is_awake, self._is_trial, self._steps_left = pays, False, self._term

    def _rate(self) -> float:
        """Without the slowest quarter of the steps: prefills and pauses say nothing of guessing."""
        steps_ns = sorted(self._steps_ns)[: -(len(self._steps_ns) // 4) or None]
        return (1 + self._num_accepted / max(1, self._num_rows)) * len(steps_ns) / max(1, sum(steps_ns))


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
    def __init__(
        self, state: BatchState, proposer: NgramProposer, pace: Pace, max_step_drafts: int = MAX_STEP_DRAFTS
    ) -> None:
        self.max_tokens, self.pace = proposer.max_tokens, pace
        self._state, self._proposer, self._max_step_drafts = state, proposer, max_step_drafts

    def draft(self, rows: Rows, budget: int) -> Int32Array:
        """Write drafts for decoding rows, `budget` tokens at most; (len(rows),) how many each has."""
        state, num_drafts = self._state, np.zeros(len(rows), np.int32)
        budget = min(budget, self._max_step_drafts)
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

    drafts: Int32Array  # (m,) what was guessed to be drawn there; of the last draw of a row anything

    def verified(self, token_ids: Int32Array) -> tuple[Int32Array, Int32Array]:
        """(m,) drawn ids → per sampled row: how many drafts are what was drawn, and the draw behind them."""
        has_draft = np.append(self.ahead[1:] > 0, False)
        misses = np.flatnonzero(~has_draft | (self.drafts != token_ids))
        ends = misses[np.searchsorted(misses, self.firsts)]
        return (ends - self.firsts).astype(np.int32), token_ids[ends]


def draws_of(plan: StepPlan, state: BatchState) -> Draws:
    """Of a plan that has drafts, before it is advanced."""
    assert plan.num_drafts is not None
    counts = plan.num_drafts[plan.samples] + 1
    firsts = np.cumsum(counts) - counts
    ahead = counting_up(counts)
    known = (np.cumsum(plan.num_new_tokens)[plan.samples] - counts).astype(np.intp)  # the last known token of each
    rows = np.repeat(plan.sampled_rows, counts)
    drafts = state.token_ids[rows, np.minimum(state.num_tokens[rows] + ahead, state.max_model_len - 1)]
    return Draws(rows, ahead, np.repeat(known, counts) + ahead, firsts.astype(np.intp), drafts)


def in_single_tokens(plan: StepPlan) -> StepPlan:
    """The same pass where every draft is an entry of its own, behind the last known token of its row."""
    if plan.num_drafts is None:
        return plan
    times = plan.num_drafts + 1
    return replace(
        plan,
        rows=np.repeat(plan.rows, times),
        num_new_tokens=np.repeat(plan.num_new_tokens - plan.num_drafts, times),
        context_lens=np.repeat(plan.context_lens, times) + counting_up(times),
        samples=np.repeat(plan.samples, times),
        num_decodes=int(times[: plan.num_decodes].sum()),
        tenancy=np.repeat(plan.tenancy, times),
        num_drafts=None,
    )


def counting_up(counts: Int32Array) -> Int32Array:
    """0, 1, … for each of these counts, end to end."""
    firsts = np.cumsum(counts) - counts
    return (np.arange(int(counts.sum())) - np.repeat(firsts, counts)).astype(np.int32)
