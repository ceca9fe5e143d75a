"""Logits become token ids, batched over rows, each row by its own parameters. Semantics are vLLM's:

    allowed ids, bad words, grammar, min_tokens mask and logit bias → penalties → end of thinking
    → (greedy rows: argmax) → temperature → min_p → top_k → top_p → draw

A draw inverts the row's cumulative distribution, in token order, at a uniform number that depends on the row's seed and
position alone (engine_core.philox), so it does not depend on the rest of the batch. Rows that ask for nothing cost
nothing beyond one pass for the maximum, which is also where a row of NaN or infinity is noticed and fails alone. So does a
row whose own rules raise.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core.batch_state import BatchState
from engine_core.held_output import allowed_next
from engine_core.philox import uniforms
from engine_core.plan import DEAD_END, NO_FINITE_LOGITS, Int32Array, RowFailure, Rows, StepResult, TokenScores
from engine_core.row_guard import each_row
from engine_core.thinking_limit import forced_token_or_none
from engine_core.token_scores import scores_of, with_alternatives
from ipc.messages import NO_LOGPROBS

GREEDY_BELOW = 1e-5  # temperatures below are greedy, as in vLLM
NUM_CANDIDATES = 512  # looked at for top_p before the whole row is sorted


class Sampler:
    def __init__(self, state: BatchState) -> None:
        self._state = state

    def sample(self, logits: Tensor, rows: Rows, ahead: Int32Array | None = None) -> StepResult:
        """(m, vocab_size) float32 logits of (m,) BatchState rows; the logits are overwritten. `ahead` counts the drafts
        before each draw (engine_core.drafting): a row may then stand several times."""
        scored = np.flatnonzero(self._state.num_logprobs[rows] != NO_LOGPROBS)
        logprobs = _log_softmax(logits, scored) if len(scored) else None
        failures = self._apply_rules(logits, rows)
        best = logits.max(dim=-1)
        token_ids = best.indices.to("cpu", torch.int32).numpy()
        is_finite = np.isfinite(best.values.cpu().numpy())
        if not is_finite.all():
            is_held = self._state.has_grammar | self._state.has_bad_words
            for row in rows[~is_finite].tolist():
                failures.setdefault(row, DEAD_END if is_held[row] else NO_FINITE_LOGITS)
        drawn = np.flatnonzero((self._state.temperature[rows] >= GREEDY_BELOW) & is_finite)
        if len(drawn):
            chosen = logits if len(drawn) == len(rows) else logits[torch.from_numpy(drawn).to(logits.device)]
            token_ids[drawn] = self._draw(chosen, rows[drawn], None if ahead is None else ahead[drawn])
        scores = {} if logprobs is None else self._scores(logprobs, rows[scored], token_ids[scored])
        return StepResult(token_ids, failures, scores)

    def _scores(self, logprobs: Tensor, rows: Rows, token_ids: NDArray[np.int32]) -> dict[int, TokenScores]:
        """(m, vocab_size) log-probabilities and the (m,) tokens that were drawn there."""
        counts = self._state.num_logprobs[rows].tolist()
        drawn = torch.from_numpy(token_ids.astype(np.int64)).to(logprobs.device)
        scores = dict(zip(rows.tolist(), scores_of(logprobs, drawn, counts), strict=True))
        for entry, (row, own) in enumerate(scores.items()):
            if ids := self._state.logprob_token_ids[row]:
                scores[row] = with_alternatives(
                    own, logprobs[entry], list(dict.fromkeys((int(token_ids[entry]), *ids)))
                )
        return scores

    def _apply_rules(self, logits: Tensor, rows: Rows) -> dict[int, RowFailure]:
        """Every row's own rules, in place; the rows in which one raised."""
        state, failures = self._state, dict[int, RowFailure]()
        is_complete = np.zeros(len(rows), np.bool_)  # where only the end may follow

        def each(is_asked: NDArray[np.bool_], rule: Callable[[Tensor, int], object]) -> None:
            each_row(rows, np.flatnonzero(is_asked), lambda index, row: rule(logits[index], row), failures)

        def mask_by_grammar(index: int, row: int) -> None:
            is_complete[index] = self._mask_by_grammar(logits[index], row)

        each(state.is_restricted[rows], self._mask_all_but_allowed)
        each(state.has_bad_words[rows], self._mask_bad_words)
        each_row(rows, np.flatnonzero(state.has_grammar[rows]), mask_by_grammar, failures)
        too_short = state.num_tokens[rows] - state.num_prompt[rows] < state.min_tokens[rows]
        each(too_short & ~is_complete, self._mask_put_off_ids)
        each(np.array([bool(state.logit_bias[row]) for row in rows.tolist()], np.bool_), self._add_logit_bias)
        counts = (state.presence_penalty[rows] != 0.0) | (state.frequency_penalty[rows] != 0.0)
        each(counts | (state.repetition_penalty[rows] != 1.0), self._penalize)
        each(state.has_thinking_limit[rows], self._end_thinking)
        return failures

    # ── one row's rules: its (vocab_size,) logits, in place ──────────────────────────────────────────────────────────

    def _mask_all_but_allowed(self, logits: Tensor, row: int) -> None:
        ids = torch.tensor(self._state.allowed_token_ids[row], device=logits.device)
        kept = logits[ids]
        logits.fill_(-torch.inf)[ids] = kept

    def _mask_bad_words(self, logits: Tensor, row: int) -> None:
        """Not the last token of a word whose others have just been drawn."""
        words = self._state.bad_words[row]
        longest = max(map(len, words)) - 1
        tail = self._output(row)[-longest:].tolist() if longest else []
        last_ids = [word[-1] for word in words if len(word) == 1 or tail[1 - len(word) :] == list(word[:-1])]
        logits[torch.tensor(last_ids, dtype=torch.int64, device=logits.device)] = -torch.inf

    def _mask_by_grammar(self, logits: Tensor, row: int) -> bool:
        """Nothing that leaves the grammar; whether only the end may follow."""
        state = self._state
        matcher = state.matcher_of(row)
        allowed = allowed_next(matcher, self._output(row), state.thinking[row])
        if allowed is None:
            return False
        _forbid(logits, ~allowed)
        return matcher.is_complete

    def _mask_put_off_ids(self, logits: Tensor, row: int) -> None:
        """No end before min_tokens, ignored or not, but where nothing else may follow."""
        ids = torch.tensor(self._state.put_off_ids[row], dtype=torch.int64, device=logits.device)
        logits[ids] = -torch.inf

    def _add_logit_bias(self, logits: Tensor, row: int) -> None:
        ids, biases = zip(*self._state.logit_bias[row], strict=True)
        logits[torch.tensor(ids, device=logits.device)] += torch.tensor(biases, device=logits.device)

    def _penalize(self, logits: Tensor, row: int) -> None:
        """Repetition sees prompt and output; presence and frequency see the output."""
        state = self._state
        penalty = float(state.repetition_penalty[row])
        if penalty != 1.0:
            ids = torch.from_numpy(np.unique(state.token_ids[row, : state.num_tokens[row]]).astype(np.int64))
            ids = ids.to(logits.device)
            seen = logits[ids]
            logits[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if state.presence_penalty[row] != 0.0 or state.frequency_penalty[row] != 0.0:
            unique, times = np.unique(self._output(row), return_counts=True)
            penalties = state.presence_penalty[row] + state.frequency_penalty[row] * times.astype(np.float32)
            ids = torch.from_numpy(unique.astype(np.int64)).to(logits.device)
            logits[ids] -= torch.from_numpy(penalties.astype(np.float32)).to(logits.device)

    def _end_thinking(self, logits: Tensor, row: int) -> None:
        """Where it has taken long enough, nothing but the next token of the end marker is left."""
        thinking = self._state.thinking[row]
        assert thinking is not None
        token = forced_token_or_none(self._output(row), thinking)
        if token is not None:
            logits.fill_(-torch.inf)[token] = 0.0

    def _output(self, row: int) -> NDArray[np.int32]:
        state = self._state
        return state.token_ids[row, state.num_prompt[row] : state.num_tokens[row]]

    # ── the draw ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self, logits: Tensor, rows: Rows, ahead: Int32Array | None) -> NDArray[np.int32]:
        """One random token per row."""
        state = self._state
        positions = state.num_tokens[rows] - state.num_prompt[rows]
        positions = positions if ahead is None else positions + ahead
        draws = torch.from_numpy(uniforms(state.seed[rows], positions.astype(np.uint64))).to(logits.device)
        temperatures = torch.from_numpy(state.temperature[rows]).to(logits.device)
        scaled = logits / temperatures.unsqueeze(1)
        self._apply_min_p(scaled, rows)
        is_cut = (state.top_k[rows] > 0) & (state.top_k[rows] < logits.shape[1]) | (state.top_p[rows] < 1.0)
        token_ids = np.empty(len(rows), np.int32)
        whole, cut = np.flatnonzero(~is_cut), np.flatnonzero(is_cut)
        if len(whole):
            probabilities = torch.softmax(scaled[torch.from_numpy(whole)], dim=-1)
            token_ids[whole] = _invert(probabilities, draws[whole]).cpu().numpy()
        if len(cut):
            token_ids[cut] = self._draw_cut(scaled[torch.from_numpy(cut)], rows[cut], draws[cut])
        return token_ids

    def _apply_min_p(self, scaled: Tensor, rows: Rows) -> None:
        min_p = self._state.min_p[rows]
        for index in np.flatnonzero(min_p > 0.0):
            threshold = scaled[index].max() + float(np.log(min_p[index]))
            scaled[index].masked_fill_(scaled[index] < threshold, -torch.inf)

    def _draw_cut(self, scaled: Tensor, rows: Rows, draws: Tensor) -> NDArray[np.int32]:
        """Rows with top_k or top_p: look at the largest candidates first, at all of them only where those do not do."""
        state, vocab_size = self._state, scaled.shape[1]
        top_k = np.where(state.top_k[rows] > 0, state.top_k[rows], vocab_size)
        num_candidates = min(vocab_size, max(NUM_CANDIDATES, int(top_k[top_k < vocab_size].max(initial=0)) + 1))
        limits = torch.from_numpy(top_k.astype(np.int64)).to(scaled.device).clamp_(max=vocab_size).unsqueeze(1)
        top_p = torch.from_numpy(state.top_p[rows]).to(scaled.device).unsqueeze(1)
        kept, ids, is_enough = _kept(scaled, limits, top_p, num_candidates)
        if not bool(is_enough.all()):
            kept, ids, _ = _kept(scaled, limits, top_p, vocab_size)
        # Back into token order: nearly equal candidates may be ranked differently in another batch.
        ids, order = ids.sort(dim=-1)
        index = _invert(kept.gather(1, order), draws)
        chosen: NDArray[np.int32] = ids.gather(1, index.unsqueeze(1)).squeeze(1).to("cpu", torch.int32).numpy()
        return chosen


def _forbid(logits: Tensor, forbidden: NDArray[np.bool_]) -> None:
    """(vocab_size,) both. numpy on a CPU: torch would share out these few microseconds to all its threads."""
    if logits.device.type == "cpu":
        np.putmask(logits.numpy(), forbidden, -np.inf)
    else:
        logits.masked_fill_(torch.from_numpy(forbidden).to(logits.device), -torch.inf)


def _log_softmax(logits: Tensor, chosen: NDArray[np.intp]) -> Tensor:
    """Of these rows, as the model gave them; a new tensor."""
    return torch.log_softmax(logits[torch.from_numpy(chosen).to(logits.device)], dim=-1)


def _kept(scaled: Tensor, limits: Tensor, top_p: Tensor, num_candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest candidates: their probabilities (0 where cut), their ids, and whether the cuts lie among them.

    top_k keeps ties with the k-th largest, as vLLM does; top_p then keeps the smallest set that reaches its mass.
    """
    values, ids = scaled.topk(num_candidates, dim=-1)  # descending
    has_top_k = limits < scaled.shape[1]
    kth = values.gather(1, limits.clamp(max=num_candidates) - 1)
    values = values.masked_fill(has_top_k & (values < kth), -torch.inf)
    total = torch.where(has_top_k, values.logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True))
    probabilities = (values - total).exp().double()
    before = probabilities.cumsum(-1) - probabilities  # mass of everything ranked higher
    kept = probabilities.masked_fill((before >= top_p.double()) & (top_p < 1.0), 0.0)
    last_is_cut = (kept[:, -1] == 0.0) | (num_candidates == scaled.shape[1])
    return kept, ids, last_is_cut


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """(m, n) unnormalized weights at (m,) numbers in [0, 1) → (m,) indices; never one of weight zero."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    targets = draws.double().unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_(max=weights.shape[1] - 1)
