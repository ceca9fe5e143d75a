"""A StepPlan becomes the tensors of one forward pass. Vectorised over tokens; per sequence only its runs are looked up."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan
from engine_core.batch_state import BatchState
from engine_core.plan import StepPlan


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """Tokens of all sequences in the plan's order, end to end."""

    token_ids: Tensor  # (num_tokens,) int64
    positions: Tensor  # (num_tokens,) int64
    sampled_tokens: Tensor  # (m,) int64: the last token of each entry that gets a sample
    metadata: AttentionMetadata


class BatchInputBuilder:
    """Keeps the runs of consecutive blocks of every row; a steady decode extends the last one or adds none."""

    def __init__(self, state: BatchState, device: torch.device) -> None:
        self._state, self._device = state, device
        self._runs = [RowRuns() for _ in range(state.max_num_seqs)]

    def build(self, plan: StepPlan) -> BatchInputs:
        state = self._state
        for row in plan.changed_rows.tolist():
            self._runs[row] = RowRuns()
        ends = np.cumsum(plan.num_new_tokens, dtype=np.int64)
        starts: NDArray[np.int64] = ends - plan.num_new_tokens
        rows = np.repeat(plan.rows, plan.num_new_tokens)
        positions = np.arange(plan.num_tokens) - np.repeat(starts - plan.context_lens, plan.num_new_tokens)
        block_size = state.block_size
        slots = state.block_table[rows, positions // block_size].astype(np.int64) * block_size + positions % block_size
        return BatchInputs(
            token_ids=self._tensor(state.token_ids[rows, positions].astype(np.int64)),
            positions=self._tensor(positions),
            sampled_tokens=self._tensor(ends[plan.samples] - 1),
            metadata=AttentionMetadata(spans=self._spans(plan, starts), slot_mapping=self._tensor(slots)),
        )

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _spans(self, plan: StepPlan, starts: NDArray[np.int64]) -> tuple[SequenceSpan, ...]:
        state, block_size = self._state, self._state.block_size
        num_blocks = state.num_blocks
        spans = []
        for row, start, num_new, context_len in zip(
            plan.rows.tolist(), starts.tolist(), plan.num_new_tokens.tolist(), plan.context_lens.tolist(), strict=True
        ):
            runs = self._runs[row]
            runs.extend(state.block_table[row, runs.num_blocks : num_blocks[row]].tolist())
            length = context_len + 1 if num_new == 1 else context_len
            spans.append(SequenceSpan(start, num_new, runs.cover(length, block_size)))
        return tuple(spans)


class RowRuns:
    """The blocks of one row as maximal runs of consecutive ids."""

    def __init__(self) -> None:
        self.num_blocks = 0
        self._first_blocks: list[int] = []
        self._lengths: list[int] = []

    def extend(self, blocks: list[int]) -> None:
        for block in blocks:
            if self._lengths and block == self._first_blocks[-1] + self._lengths[-1]:
                self._lengths[-1] += 1
            else:
                self._first_blocks.append(block)
                self._lengths.append(1)
        self.num_blocks += len(blocks)

    def cover(self, num_tokens: int, block_size: int) -> tuple[Run, ...]:
        """The runs that hold the first `num_tokens` tokens; the last one cut to measure."""
        if num_tokens and num_tokens <= self._lengths[0] * block_size:
            return (Run(self._first_blocks[0] * block_size, num_tokens),)
        runs = []
        for first_block, length in zip(self._first_blocks, self._lengths, strict=True):
            if num_tokens <= 0:
                break
            runs.append(Run(first_block * block_size, min(num_tokens, length * block_size)))
            num_tokens -= length * block_size
        return tuple(runs)
