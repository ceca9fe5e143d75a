"""CPU attention equals the gathering reference, for any layout of blocks, chunks and heads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan, SingleTokens
from engine_core.attention.cpu import cpu_attention
from engine_core.attention.reference import reference_attention
from engine_core.batch_inputs import runs_of

BLOCK = 4
NUM_BLOCKS = 64


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int, list[int]]]:
    """(context length, new tokens, blocks) per sequence; blocks are disjoint and in any order."""
    free = draw(st.permutations(range(NUM_BLOCKS)))
    sequences = []
    for _ in range(draw(st.integers(1, 5))):
        context, new = draw(st.integers(0, 30)), draw(st.integers(1, 12))
        needed = -(-(context + new) // BLOCK)
        if needed > len(free):
            break
        blocks, free = free[:needed], free[needed:]
        sequences.append((context, new, sorted(blocks) if draw(st.booleans()) else list(blocks)))
    return sequences


def metadata_of(sequences: list[tuple[int, int, list[int]]]) -> AttentionMetadata:
    singles: list[tuple[int, int, list[int]]] = []  # place, length, blocks
    spans, slots, start = [], [], 0
    for context, new, blocks in sequences:
        if new == 1:
            singles.append((start, context + 1, blocks))
        else:
            held = np.array(blocks[: -(-context // BLOCK)], np.int32)
            spans.append(SequenceSpan(start, new, runs_of(held, context, BLOCK)))
        slots += [blocks[n // BLOCK] * BLOCK + n % BLOCK for n in range(context, context + new)]
        start += new
    return AttentionMetadata(single_tokens(singles), tuple(spans), torch.tensor(slots))


def single_tokens(entries: list[tuple[int, int, list[int]]]) -> SingleTokens:
    """(place, length, blocks) of each; blocks nobody may read stand behind a sequence's last one."""
    width = max((len(blocks) for _, _, blocks in entries), default=0)
    tables = np.full((len(entries), width), 10_000, np.int32)
    for row, (_, _, blocks) in enumerate(entries):
        tables[row, : len(blocks)] = blocks
    places, lengths = (np.array([entry[column] for entry in entries], np.int32) for column in (0, 1))
    return SingleTokens(places, tables, lengths, BLOCK)


@settings(max_examples=80, deadline=None)
@given(batches(), st.sampled_from([(1, 1), (3, 1), (9, 3), (4, 4)]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_cpu_attention_is_the_reference(
    sequences: list[tuple[int, int, list[int]]], heads: tuple[int, int], dtype: torch.dtype
) -> None:
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(len(sequences))
    num_tokens = sum(new for _, new, _ in sequences)
    pool = torch.randn((NUM_BLOCKS * BLOCK, 2, num_kv_heads, 16), generator=generator).to(dtype)
    q = torch.randn((num_tokens, num_heads, 16), generator=generator).to(dtype)
    kv = torch.randn((num_tokens, 2, num_kv_heads, 16), generator=generator).to(dtype)
    metadata = metadata_of(sequences)
    reference_pool = pool.clone()

    output = cpu_attention(q, kv, pool, metadata)

    expected = reference_attention(q, kv, reference_pool, metadata)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(output.float(), expected.float(), atol=tolerance, rtol=tolerance)
    assert torch.equal(pool, reference_pool), "both store the step's K/V in the same slots"


def test_a_prefix_that_sequences_share_is_attended_by_each() -> None:
    pool = torch.randn(NUM_BLOCKS * BLOCK, 2, 3, 16)
    q, kv = torch.randn(4, 9, 16), torch.randn(4, 2, 3, 16)
    sequences = [(16 + n, 1, [0, 1, 2, 3, 10 + n]) for n in range(4)]

    output = cpu_attention(q, kv, pool.clone(), metadata_of(sequences))

    expected = reference_attention(q, kv, pool.clone(), metadata_of(sequences))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_slots_no_sequence_owns_are_never_read() -> None:
    pool = torch.full((NUM_BLOCKS * BLOCK, 2, 1, 16), float("nan"))
    pool[8:15] = 0.5  # block 2 and all but the last slot of block 3
    metadata = AttentionMetadata(single_tokens([(0, 7, [2, 3])]), (), torch.tensor([14]))

    output = cpu_attention(torch.ones(1, 2, 16), torch.ones(1, 2, 1, 16), pool, metadata)

    assert output.isfinite().all()


def test_a_decode_copies_no_context() -> None:
    """What a decode allocates does not grow with its context."""
    pool = torch.randn(4096, 2, 3, 64)
    q, kv = torch.randn(1, 9, 64), torch.randn(1, 2, 3, 64)

    def allocated_bytes(context: int) -> int:
        blocks = list(range(context // BLOCK))
        metadata = AttentionMetadata(single_tokens([(0, context, blocks)]), (), torch.tensor([context - 1]))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            cpu_attention(q, kv, pool, metadata)
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())

    assert allocated_bytes(4000) == allocated_bytes(1000)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_scores_of_any_size_are_weighed_without_overflow(scale: float) -> None:
    pool = torch.randn(NUM_BLOCKS * BLOCK, 2, 1, 16) * scale
    q, kv = torch.randn(1, 2, 16) * scale, torch.randn(1, 2, 1, 16) * scale
    metadata = metadata_of([(50, 1, list(range(20, 33)))])

    output = cpu_attention(q, kv, pool.clone(), metadata)

    expected = reference_attention(q, kv, pool.clone(), metadata)
    torch.testing.assert_close(output, expected, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("blocks", "num_tokens", "runs"),
    [
        ([5, 6, 7], 12, (Run(20, 12),)),
        ([5, 6, 7], 9, (Run(20, 9),)),
        ([5, 9, 10], 11, (Run(20, 4), Run(36, 7))),
        ([5, 4, 3], 4, (Run(20, 4),)),
        ([5], 0, ()),
    ],
)
def test_runs_cover_exactly_the_tokens(blocks: list[int], num_tokens: int, runs: tuple[Run, ...]) -> None:
    held = np.array(blocks[: -(-num_tokens // BLOCK)], np.int32)

    assert runs_of(held, num_tokens, BLOCK) == runs
