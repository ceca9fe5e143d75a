"""Which rows of a decode batch begin with the same K/V, as the blocks of the prefix cache tell. No torch.

Attention reads such a prefix once per tile of rows instead of once per row (Hydragen, arXiv 2402.05099; cascade attention
in vLLM, there for a prefix that all rows share). A block of the cache stands for everything before it too, so rows that
have the same block at one depth agree up to there, whatever blocks hold their beginnings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array, Rows

MIN_ROWS = 16  # in a batch: below, weights are what a step reads
MIN_MEMBERS = 4  # in a group
MIN_SAVED = 0.25  # of the batch's K/V reads
TILE_HEADS = 64  # query heads of a tile that read one K/V head: the rows of one matrix product


def rows_per_tile(num_heads: int, num_kv_heads: int) -> int:
    return max(8, TILE_HEADS * num_kv_heads // num_heads)


def max_tiles(num_rows: int) -> int:
    """A group of k rows is at most k / MIN_MEMBERS tiles, since a tile has room for 8 rows or more."""
    return num_rows // MIN_MEMBERS


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTiles:
    """Rows of one decode batch by the prefix they share, t tiles. Rows are named by their places in the batch."""

    members: Int32Array  # (t, rows_per_tile), -1 where there is none; the first one is always there
    tile_lengths: Int32Array  # (t,) tokens of the prefix: whole blocks
    shared_lens: Int32Array  # (n,) likewise by place; 0: in no tile


class PrefixGroups:
    """Looks again only when the batch has changed: blocks that rows share are there before they decode."""

    def __init__(self, state: BatchState, rows_per_tile: int) -> None:
        self._state, self.rows_per_tile = state, rows_per_tile
        self._rows: Rows | None = None
        self._tiles: PrefixTiles | None = None

    def forget(self) -> None:
        """A row has another occupant."""
        self._rows = None

    def tiles_or_none(self, rows: Rows, contexts: Int32Array) -> PrefixTiles | None:
        """`contexts` are the tokens with K/V, by row. None: too little to be saved."""
        if len(rows) < MIN_ROWS:
            return None
        if self._rows is None or not np.array_equal(rows, self._rows):
            self._rows, self._tiles = rows.copy(), self._look(rows, contexts)
        return self._tiles

    def _look(self, rows: Rows, contexts: Int32Array) -> PrefixTiles | None:
        table = self._state.block_table[rows]
        num_blocks = contexts // self._state.block_size
        depth = _best_depth(table, num_blocks)
        if depth == 0:
            return None
        groups = [_group(places, table, num_blocks, depth) for places in _places_by_block(table, num_blocks, depth)]
        num_saved = sum(num_shared * (len(places) - 1) for places, num_shared in groups)
        if num_saved * self._state.block_size < MIN_SAVED * int(contexts.sum()):
            return None
        return self._cut(groups, len(rows))

    def _cut(self, groups: list[tuple[NDArray[np.intp], int]], num_rows: int) -> PrefixTiles:
        size, block_size = self.rows_per_tile, self._state.block_size
        shared_lens = np.zeros(num_rows, np.int32)
        tiles: list[NDArray[np.intp]] = []
        tile_lengths: list[int] = []
        for places, num_shared in groups:
            shared_lens[places] = num_shared * block_size
            parts = np.array_split(places, -(-len(places) // size))
            tiles += parts
            tile_lengths += [num_shared * block_size] * len(parts)
        members = np.full((len(tiles), size), -1, np.int32)
        for tile, part in enumerate(tiles):
            members[tile, : len(part)] = part
        return PrefixTiles(members, np.array(tile_lengths, np.int32), shared_lens)


def _best_depth(table: Int32Array, num_blocks: Int32Array) -> int:
    """In blocks, a power of two: where agreeing rows save most. 0: nowhere."""
    best, most_saved, depth = 0, 0, 1
    while depth <= int(num_blocks.max()):
        counts = np.unique(table[num_blocks >= depth, depth - 1], return_counts=True)[1]
        saved = depth * int((counts[counts >= MIN_MEMBERS] - 1).sum())
        if saved > most_saved:
            best, most_saved = depth, saved
        depth *= 2
    return best


def _places_by_block(table: Int32Array, num_blocks: Int32Array, depth: int) -> list[NDArray[np.intp]]:
    """Places of rows that have the same block at this depth, where there are enough of them."""
    places = np.flatnonzero(num_blocks >= depth)
    blocks = table[places, depth - 1]
    order = np.argsort(blocks, kind="stable")
    ends = np.flatnonzero(np.diff(blocks[order])) + 1
    return [group for group in np.split(places[order], ends) if len(group) >= MIN_MEMBERS]


def _group(
    places: NDArray[np.intp], table: Int32Array, num_blocks: Int32Array, depth: int
) -> tuple[NDArray[np.intp], int]:
    """The places and how many blocks they share: `depth`, and what they agree on behind it."""
    behind = table[places, depth : int(num_blocks[places].min())]
    agrees = (behind == behind[0]).all(axis=0)
    return places, depth + (len(agrees) if agrees.all() else int(agrees.argmin()))
