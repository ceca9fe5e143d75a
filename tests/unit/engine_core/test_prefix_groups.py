"""Rows of a decode batch and the prefixes they share."""

from typing import Any

import numpy as np
import pytest

from engine_core.batch_state import BatchState
from engine_core.prefix_groups import MIN_ROWS, PrefixGroups, PrefixTiles, max_tiles, rows_per_tile

BLOCK_SIZE = 16


class Batch:
    """Rows by their blocks and contexts, in the order given."""

    def __init__(self, rows: list[tuple[list[int], int]], tile: int = 8) -> None:
        self.state = BatchState(max_num_seqs=len(rows), max_model_len=4096, block_size=BLOCK_SIZE)
        self.contexts = np.array([context for _, context in rows], np.int32)
        self.rows = np.arange(len(rows))
        for row, (blocks, _) in enumerate(rows):
            self.state.block_table[row, : len(blocks)] = blocks
        self.groups = PrefixGroups(self.state, tile)

    def tiles_or_none(self) -> PrefixTiles | None:
        return self.groups.tiles_or_none(self.rows, self.contexts)

    def tiles(self) -> PrefixTiles:
        tiles = self.tiles_or_none()
        assert tiles is not None
        return tiles


def sharing(num_rows: int, shared: list[int], *, first_own: int, own_tokens: int = 5) -> list[tuple[list[int], int]]:
    """Rows with these blocks in common and one of their own."""
    context = len(shared) * BLOCK_SIZE + own_tokens
    return [([*shared, first_own + row], context) for row in range(num_rows)]


def test_rows_of_one_prompt_share_its_whole_blocks() -> None:
    tiles = Batch(sharing(16, list(range(10)), first_own=100)).tiles()

    assert tiles.members.tolist() == [list(range(8)), list(range(8, 16))]
    assert tiles.tile_lengths.tolist() == [160, 160]
    assert tiles.shared_lens.tolist() == [160] * 16


def test_each_prompt_has_tiles_of_its_own_cut_evenly() -> None:
    rows = sharing(9, list(range(10)), first_own=100) + sharing(7, list(range(20, 33)), first_own=200)

    tiles = Batch(rows).tiles()

    assert [[place for place in tile if place >= 0] for tile in tiles.members.tolist()] == [
        [0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15],
    ]  # fmt: skip
    assert tiles.tile_lengths.tolist() == [160, 160, 208]
    assert tiles.shared_lens.tolist() == [160] * 9 + [208] * 7


def test_a_long_prompt_counts_for_more_than_the_short_beginning_that_all_have() -> None:
    prompts = [[0, *range(10 * prompt, 10 * prompt + 9)] for prompt in (1, 2)]
    rows = sharing(8, prompts[0], first_own=100) + sharing(8, prompts[1], first_own=200)

    assert Batch(rows).tiles().tile_lengths.tolist() == [160, 160]


def test_rows_that_share_nothing_and_few_rows_are_in_no_tile() -> None:
    rows = sharing(13, list(range(10)), first_own=100) + sharing(3, list(range(20, 30)), first_own=200)
    rows += [([300], 5)] * 2

    assert Batch(rows).tiles().shared_lens.tolist() == [160] * 13 + [0] * 5


def test_a_block_that_is_not_full_for_every_row_is_not_shared() -> None:
    rows = [([*range(10), 10], context) for context in [176] * 15 + [175]]

    assert Batch(rows).tiles().tile_lengths.tolist() == [160, 160]


@pytest.mark.parametrize(
    "rows",
    [
        sharing(MIN_ROWS - 1, list(range(10)), first_own=100),
        [([row], 5) for row in range(32)],
        [([row, 100 + row], 20) for row in range(32)],
        sharing(3, list(range(10)), first_own=100) + [([200 + row], 5) for row in range(16)],
        sharing(4, [0], first_own=100) + [(list(range(200 + 20 * row, 216 + 20 * row)), 250) for row in range(16)],
    ],
    ids=["few rows", "short", "each its own", "three of a kind", "little of much"],
)
def test_where_little_would_be_saved_nothing_is_done(rows: list[tuple[list[int], int]]) -> None:
    assert Batch(rows).tiles_or_none() is None


def test_it_looks_again_when_the_rows_are_others_or_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(sharing(32, list(range(10)), first_own=100))
    seen: list[int] = []
    look = PrefixGroups._look

    def counted(self: PrefixGroups, rows: Any, contexts: Any) -> PrefixTiles | None:
        seen.append(len(rows))
        return look(self, rows, contexts)

    monkeypatch.setattr(PrefixGroups, "_look", counted)

    for _ in range(3):
        batch.tiles()
        batch.contexts += 1
    batch.groups.tiles_or_none(batch.rows[:20], batch.contexts[:20])
    batch.groups.forget()
    batch.groups.tiles_or_none(batch.rows[:20], batch.contexts[:20])

    assert seen == [32, 20, 20]


def test_no_grouping_needs_more_tiles_than_there_is_room_for() -> None:
    source = np.random.default_rng(0)
    for _ in range(200):
        sizes = source.integers(1, 40, size=8)
        rows = [
            row for number, size in enumerate(sizes.tolist())
            for row in sharing(size, [50 * number + block for block in range(10)], first_own=1000 + 100 * number)
        ]  # fmt: skip
        tiles = Batch(rows, tile=rows_per_tile(64, 8)).tiles_or_none()
        if tiles is not None:
            assert len(tiles.tile_lengths) <= max_tiles(len(rows))
            placed = tiles.members[tiles.members >= 0]
            assert sorted(placed.tolist()) == np.flatnonzero(tiles.shared_lens).tolist()
