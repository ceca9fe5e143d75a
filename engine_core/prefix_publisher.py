"""Which blocks of running sequences the prefix cache has: looked up when a sequence starts, offered as they become full.
No torch.

`BatchState.next_link_len` says for each row how many computed tokens the next offer takes; a row that publishes nothing is
never due.
"""

import numpy as np

from engine_core.batch_state import BatchState
from engine_core.plan import Int32Array, Rows
from engine_core.prefix_cache import PrefixCache
from engine_core.sequence import Sequence
from ipc.block_hash import next_link


class PrefixPublisher:
    def __init__(self, state: BatchState, cache: PrefixCache) -> None:
        self._state, self._cache, self._block_size = state, cache, state.block_size

    def cached(self, sequence: Sequence) -> list[int]:
        """Blocks of the longest cached prefix that leaves at least the last token to compute: it gives the logits."""
        if not sequence.is_cacheable:
            return []
        max_blocks = (len(sequence.token_ids) - 1) // self._block_size
        return self._cache.match(sequence.block_links[:max_blocks])

    def follow(self, row: int, num_cached: int) -> None:
        """This row publishes what it computes behind so many cached blocks."""
        self._state.next_link_len[row] = (num_cached + 1) * self._block_size

    def publish(self, rows: Rows, computed: Int32Array) -> None:
        """Rows with so many computed tokens: those that decode have one new full block at most, prefill chunks many."""
        state = self._state
        is_due = computed >= state.next_link_len[rows]
        if not is_due.any():
            return
        rows, computed = rows[is_due], computed[is_due]
        has_many = computed - state.next_link_len[rows] >= self._block_size
        for row, num_computed in zip(rows[has_many].tolist(), computed[has_many].tolist(), strict=True):
            self._publish_run(row, num_computed)
        rows = rows[~has_many]
        if len(rows):
            self._publish_one_each(rows)

    def _publish_run(self, row: int, num_computed: int) -> None:
        state, block_size = self._state, self._block_size
        start = int(state.next_link_len[row]) // block_size - 1
        end = num_computed // block_size
        links = self._links_of(row)
        while len(links) < end:  # a preempted sequence brings generated tokens
            tokens = state.token_ids[row, len(links) * block_size : (len(links) + 1) * block_size]
            links.append(next_link(links[-1], tokens.tobytes()))
        for block, link in zip(state.block_table[row, start:end].tolist(), links[start:end], strict=True):
            self._cache.publish(block, link)
        state.next_link_len[row] = (end + 1) * block_size

    def _publish_one_each(self, rows: Rows) -> None:
        """The same for many rows with one block each, gathered at once."""
        state, block_size = self._state, self._block_size
        positions = state.next_link_len[rows] // block_size - 1
        state.next_link_len[rows] += block_size
        tokens = state.token_ids[rows[:, None], positions[:, None] * block_size + np.arange(block_size)].tobytes()
        blocks = state.block_table[rows, positions].tolist()
        for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            links = self._links_of(row)
            if position == len(links):
                links.append(next_link(links[-1], tokens[4 * block_size * index : 4 * block_size * (index + 1)]))
            self._cache.publish(blocks[index], links[position])

    def _links_of(self, row: int) -> list[bytes]:
        sequence = self._state.sequences[row]
        assert sequence is not None, f"{row=} has no sequence"
        return sequence.block_links
