"""A plan's tensors are what the scheduler wrote: checked token by token against the obvious loop."""

import numpy as np
import torch

from engine_core.attention.base import Run, SequenceSpan
from engine_core.batch_inputs import build_inputs
from engine_core.batch_state import BatchState
from engine_core.plan import StepPlan

BLOCK = 4
CPU = torch.device("cpu")


def state_with_rows() -> BatchState:
    """Row 0: 9 tokens in blocks 5, 6, 2. Row 2: 7 tokens in blocks 10, 11."""
    state = BatchState(max_num_seqs=3, max_model_len=32, block_size=BLOCK)
    for row, blocks, num_tokens in ((0, [5, 6, 2], 9), (2, [10, 11], 7)):
        state.block_table[row, : len(blocks)] = blocks
        state.num_blocks[row] = len(blocks)
        state.token_ids[row, :num_tokens] = np.arange(num_tokens) + 100 * (row + 1)
        state.num_tokens[row] = num_tokens
    return state


def plan_of(entries: list[tuple[int, int, int]], state: BatchState, changed: tuple[int, ...] = (0, 2)) -> StepPlan:
    """(row, context length, new tokens) per entry."""
    rows, contexts, num_new = (np.array(column) for column in zip(*entries, strict=True))
    return StepPlan(
        rows=rows.astype(np.intp),
        num_new_tokens=num_new.astype(np.int32),
        context_lens=contexts.astype(np.int32),
        samples=contexts + num_new == state.num_tokens[rows],
        num_decodes=int((num_new == 1).sum()),
        num_tokens=int(num_new.sum()),
        freed_rows=np.zeros(0, np.intp),
        changed_rows=np.array(changed, np.intp),
        tenancy=state.tenancy[rows],
    )


def test_a_decode_beside_a_chunk() -> None:
    state = state_with_rows()

    inputs = build_inputs(state, plan_of([(0, 8, 1), (2, 2, 4)], state), CPU)

    assert inputs.token_ids.tolist() == [108, 302, 303, 304, 305]
    assert inputs.positions.tolist() == [8, 2, 3, 4, 5]
    assert inputs.sampled_tokens.tolist() == [0], "the chunk ends before the last known token"
    assert inputs.metadata.slot_mapping.tolist() == [8, 42, 43, 44, 45]
    singles = inputs.metadata.singles
    assert singles.tokens.tolist() == [0] and singles.lengths.tolist() == [9], "with its own token"
    assert singles.block_tables.tolist() == [[5, 6, 2]]
    assert inputs.metadata.spans == (SequenceSpan(1, 4, (Run(40, 2),)),), "without: the chunk's K/V is at hand"


def test_the_last_chunk_is_sampled_at_its_last_token() -> None:
    state = state_with_rows()

    inputs = build_inputs(state, plan_of([(0, 8, 1), (2, 4, 3)], state), CPU)

    assert inputs.sampled_tokens.tolist() == [0, 3]


def test_a_chunk_of_one_token_is_a_single_token_whatever_its_place() -> None:
    state = state_with_rows()

    inputs = build_inputs(state, plan_of([(0, 3, 6), (2, 6, 1)], state), CPU)

    singles = inputs.metadata.singles
    assert singles.tokens.tolist() == [6] and singles.lengths.tolist() == [7]
    assert singles.block_tables.tolist() == [[10, 11]]
    assert inputs.metadata.spans == (SequenceSpan(0, 6, (Run(20, 3),)),)
