"""Prompts being computed: who is admitted from the queue, and which chunks a pass computes. No torch.

Chunks go by rank. The head of the queue (engine_core.waiting_queue) is admitted when a row is free and blocks for all its
known tokens are, plus one in reserve for every sequence that runs: admission never causes a preemption by itself.
"""

from collections.abc import Callable

from engine_core.batch_state import BatchState
from engine_core.block_manager import NOWHERE, BlockManager
from engine_core.prefix_publisher import PrefixPublisher
from engine_core.sequence import Sequence
from engine_core.waiting_queue import WaitingQueue


class Prefills:
    def __init__(
        self,
        state: BatchState,
        blocks: BlockManager,
        prefixes: PrefixPublisher,
        waiting: WaitingQueue,
        on_start: Callable[[Sequence, int, int], None],
    ) -> None:
        """`on_start` gets a sequence when it is admitted for the first time, how much of its prompt is cached, and the time."""
        self.under_way: list[Sequence] = []  # running, prompt not yet computed; in the order of their turns
        self._state, self._blocks, self._prefixes, self._waiting = state, blocks, prefixes, waiting
        self._on_start = on_start

    def plan(self, budget: int, may_admit: bool, now_ns: int) -> list[tuple[int, int]]:
        """(row, chunk) for as many prefills as the budget of tokens allows: those under way and those admitted now."""
        chunks: list[tuple[int, int]] = []
        position = 0  # in under_way: everything before it is planned
        while budget > 0:
            head = self._waiting.head_or_none(now_ns) if may_admit else None
            is_under_way = position < len(self.under_way)
            if head is not None and not (is_under_way and self.under_way[position] < head):
                may_admit = self._try_admit(head, position, now_ns)
                if not may_admit:
                    continue  # first come, first served: a big prompt is never overtaken
            elif not is_under_way:
                break
            row = self.under_way[position].row
            chunk = min(budget, int(self._state.num_tokens[row] - self._state.num_computed[row]))
            chunks.append((row, chunk))
            budget -= chunk
            position += 1
        return chunks

    def _try_admit(self, sequence: Sequence, position: int, now_ns: int) -> bool:
        """Give the head of the queue a row, the blocks of all its known tokens and this turn among the prefills. False
        when there is no room."""
        state, blocks = self._state, self._blocks
        if not state.num_free_rows:
            return False
        num_tokens = len(sequence.token_ids)
        cached = self._prefixes.cached(sequence)
        num_new = -(-num_tokens // state.block_size) - len(cached)
        reserve = state.num_running
        if num_new + blocks.num_idle_of(cached) + reserve > blocks.num_available:
            return False
        self._waiting.pop()
        blocks.acquire(cached)
        own = cached + blocks.allocate(num_new, cached[-1] if cached else NOWHERE)
        row = state.add(sequence)
        state.block_table[row, : len(own)] = own
        state.num_blocks[row] = len(own)
        state.num_computed[row] = len(cached) * state.block_size
        if sequence.is_cacheable:
            self._prefixes.follow(row, len(cached))
        self.under_way.insert(position, sequence)
        if not sequence.first_scheduled_ns:
            num_cached = min(len(cached) * state.block_size, sequence.num_prompt_tokens)
            self._on_start(sequence, num_cached, now_ns)
        return True
