"""A StepPlan becomes the tensors of one forward pass. Vectorised over tokens and sequences; keeps nothing between steps."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan, SingleTokens
from engine_core.batch_state import BatchState
from engine_core.drafting import counting_up, draws_of
from engine_core.plan import StepPlan


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """Tokens of all sequences in the plan's order, end to end."""

    token_ids: Tensor  # (num_tokens,) int64
    positions: Tensor  # (num_tokens,) int64
    sampled_tokens: Tensor  # (m,) int64: the last token of each entry that gets a sample
    metadata: AttentionMetadata


def build_inputs(state: BatchState, plan: StepPlan, device: torch.device) -> BatchInputs:
    """The plan's tokens and where they lie."""
    ends = np.cumsum(plan.num_new_tokens, dtype=np.int64)
    starts: NDArray[np.int64] = ends - plan.num_new_tokens
    rows = np.repeat(plan.rows, plan.num_new_tokens)
    positions = np.arange(plan.num_tokens) - np.repeat(starts - plan.context_lens, plan.num_new_tokens)
    block_size = state.block_size
    slots = state.block_table[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size

    def tensor(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return BatchInputs(
        token_ids=tensor(state.token_ids[rows, positions].astype(np.int64)),
        positions=tensor(positions),
        sampled_tokens=tensor(ends[plan.samples] - 1 if plan.num_drafts is None else draws_of(plan, state).tokens),
        metadata=AttentionMetadata(_singles(state, plan, starts), _spans(state, plan, starts), tensor(slots)),
    )


def _singles(state: BatchState, plan: StepPlan, starts: NDArray[np.int64]) -> SingleTokens:
    chosen = plan.num_new_tokens == 1
    if plan.num_drafts is not None:
        chosen |= plan.num_drafts > 0
    rows, lengths, tokens = plan.rows[chosen], plan.context_lens[chosen] + 1, starts[chosen].astype(np.int32)
    if plan.num_drafts is not None:  # a draft attends as the decode of its place would, to the bit
        counts = plan.num_new_tokens[chosen]
        ahead, rows = counting_up(counts), np.repeat(rows, counts)
        lengths, tokens = np.repeat(lengths, counts) + ahead, np.repeat(tokens, counts) + ahead
    width = -(-int(lengths.max(initial=0)) // state.block_size)
    return SingleTokens(tokens, state.block_table[rows, :width], lengths, state.block_size)


def _spans(state: BatchState, plan: StepPlan, starts: NDArray[np.int64]) -> tuple[SequenceSpan, ...]:
    spans = []
    is_span = plan.num_new_tokens > 1
    if plan.num_drafts is not None:
        is_span &= plan.num_drafts == 0
    for entry in np.flatnonzero(is_span).tolist():
        context_len = int(plan.context_lens[entry])
        blocks = state.block_table[plan.rows[entry], : -(-context_len // state.block_size)]
        context = runs_of(blocks, context_len, state.block_size)
        spans.append(SequenceSpan(int(starts[entry]), int(plan.num_new_tokens[entry]), context))
    return tuple(spans)


def runs_of(blocks: NDArray[np.int32], num_tokens: int, block_size: int) -> tuple[Run, ...]:
    """The maximal runs of consecutive ids among blocks that hold `num_tokens` tokens."""
    if not num_tokens:
        return ()
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(blocks) != 1) + 1))
    sizes = np.diff(np.append(firsts, len(blocks))) * block_size
    sizes[-1] -= len(blocks) * block_size - num_tokens
    return tuple(Run(int(blocks[first]) * block_size, int(size)) for first, size in zip(firsts, sizes, strict=True))
