"""CPU attention over block runs equals the gathering reference, for any layout of blocks, chunks and heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_core.attention.base import AttentionMetadata, Run, SequenceSpan
from engine_core.attention.cpu import cpu_attention
from engine_core.attention.reference import reference_attention
from engine_core.batch_inputs import RowRuns

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
    spans, slots, start = [], [], 0
    for context, new, blocks in sequences:
        runs = RowRuns()
        runs.extend(blocks)
        spans.append(SequenceSpan(start, new, runs.cover(context + 1 if new == 1 else context, BLOCK)))
        slots += [blocks[n // BLOCK] * BLOCK + n % BLOCK for n in range(context, context + new)]
        start += new
    return AttentionMetadata(tuple(spans), torch.tensor(slots))


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
    q, kv = torch.randn(5, 9, 16), torch.randn(5, 2, 3, 16)
    shared = Run(0, 16)
    spans = [SequenceSpan(n, 1, (shared, Run(40 + 16 * n, 5 + n))) for n in range(4)]
    spans.append(SequenceSpan(4, 1, (Run(120, 7),)))
    slots = torch.tensor([40 + 16 * n + 4 + n for n in range(4)] + [126])
    metadata = AttentionMetadata(tuple(spans), slots)

    output = cpu_attention(q, kv, pool.clone(), metadata)

    torch.testing.assert_close(output, reference_attention(q, kv, pool.clone(), metadata), atol=1e-5, rtol=1e-5)


def test_slots_no_sequence_owns_are_never_read() -> None:
    pool = torch.full((NUM_BLOCKS * BLOCK, 2, 1, 16), float("nan"))
    pool[8:16] = 0.5  # blocks 2 and 3
    metadata = AttentionMetadata((SequenceSpan(0, 1, (Run(8, 8),)),), torch.tensor([15]))

    output = cpu_attention(torch.ones(1, 2, 16), torch.ones(1, 2, 1, 16), pool, metadata)

    assert output.isfinite().all()


def test_decode_over_one_run_copies_no_context() -> None:
    """What a decode allocates does not grow with its context."""
    pool = torch.randn(4096, 2, 3, 64)
    q, kv = torch.randn(1, 9, 64), torch.randn(1, 2, 3, 64)

    def allocated_bytes(context: int) -> int:
        metadata = AttentionMetadata((SequenceSpan(0, 1, (Run(0, context),)),), torch.tensor([context - 1]))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            cpu_attention(q, kv, pool, metadata)
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())

    one_token_bytes = 2 * 3 * 64 * 4
    assert allocated_bytes(4000) - allocated_bytes(1000) < 100 * one_token_bytes


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
    row = RowRuns()
    row.extend(blocks)

    assert row.cover(num_tokens, BLOCK) == runs
