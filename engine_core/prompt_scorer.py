"""How likely the model held the tokens of prompts: from the hidden states of their chunks, a slice at a time.

A slice is what is ever widened to logits at once: a chunk of 2048 tokens over a vocabulary of 150 000 would be 1.2 GB.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine_core.batch_state import BatchState
from engine_core.plan import PromptScores, StepPlan, TokenScores
from engine_core.token_scores import scores_of
from ipc.messages import NO_LOGPROBS

SLICE_TOKENS = 64


class PromptScorer:
    def __init__(self, state: BatchState, logits: Callable[[Tensor], Tensor]) -> None:
        """`logits` are the decoder's: (num_tokens, hidden_size) → (num_tokens, vocab_size) float32."""
        self._state, self._logits = state, logits

    def score(self, plan: StepPlan, hidden: Tensor) -> dict[int, PromptScores]:
        """`hidden` is (num_tokens, hidden_size), the plan's tokens end to end → by row, the prompt tokens that follow what it
        computes. Waits for the device."""
        state = self._state
        starts = np.cumsum(plan.num_new_tokens) - plan.num_new_tokens
        is_asked = state.num_prompt_logprobs[plan.rows] != NO_LOGPROBS
        scored: dict[int, PromptScores] = {}
        for entry in np.flatnonzero(is_asked & (plan.context_lens < state.num_prompt[plan.rows] - 1)).tolist():
            row, start, context_len = int(plan.rows[entry]), int(starts[entry]), int(plan.context_lens[entry])
            end = min(context_len + int(plan.num_new_tokens[entry]), int(state.num_prompt[row]) - 1)
            states = hidden[start : start + end - context_len]
            scored[row] = PromptScores(context_len + 1, self._scores(states, row, context_len + 1))
        return scored

    def _scores(self, hidden: Tensor, row: int, first_place: int) -> list[TokenScores]:
        tokens = self._state.token_ids[row, first_place : first_place + len(hidden)]
        counts = [int(self._state.num_prompt_logprobs[row])] * len(hidden)
        scores: list[TokenScores] = []
        for start in range(0, len(hidden), SLICE_TOKENS):
            logprobs = torch.log_softmax(self._logits(hidden[start : start + SLICE_TOKENS]), dim=-1)
            chosen = torch.from_numpy(tokens[start : start + SLICE_TOKENS].astype(np.int64))
            scores += scores_of(logprobs, chosen.to(logprobs.device), counts[start : start + SLICE_TOKENS])
        return scores
