"""Who owns which KV block, and where a new one is placed. No torch here.

A block is in exactly one of three places: in use (reference count above 0), idle (count 0, but its K/V is in the prefix
cache), or free (in no cache). Idle blocks count as available: they are evicted, oldest first, when nothing is free.

Placement. The CPU attention reads K/V of physically contiguous blocks as views without copying, so a sequence should be
one run. It grows into the block behind its last one when that is free; a new run starts in the middle of the
largest free extent, which leaves room to grow on both sides, to this sequence and to its left neighbour. Free extents
are kept with boundary tags (merging costs two dictionary look-ups) and a heap with lazy deletion (the largest costs
O(log n)). When memory is scarce idle blocks are evicted some at a time, so that runs and not single blocks come free.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

from engine_core.prefix_cache import PrefixCache

NOWHERE = -2  # `after` of a new run: block NOWHERE + 1 does not exist

_EVICTION_SHARE = 32  # at least this fraction of the pool is evicted at a time
_STALE_ENTRIES = 1024  # heap entries beyond the live ones that are tolerated


class FreeExtents:
    """The free blocks as maximal runs of consecutive ids."""

    def __init__(self, num_blocks: int) -> None:
        self.num_free = 0
        self._end_of: dict[int, int] = {}  # first block of an extent -> its last
        self._start_of: dict[int, int] = {}  # last block of an extent -> its first
        self._by_size: list[tuple[int, int]] = []  # heap of (-size, last); put right or dropped when they surface
        if num_blocks:
            self._insert(0, num_blocks - 1)
            self.num_free = num_blocks

    def take_one(self, after: int) -> int:
        """One block, which must exist: the one behind `after` when that is free. See `take`."""
        start = after + 1
        end = self._end_of.pop(start, None)
        if end is None:
            return self.take(1)[0]
        if end == start:
            del self._start_of[end]
        else:
            self._end_of[start + 1] = end
            self._start_of[end] = start + 1
        self.num_free -= 1
        return start

    def take(self, count: int, after: int = NOWHERE) -> list[int]:
        """`count` blocks, which must exist: the first behind block `after` when that is free, in few runs.

        `after` is not free itself, so the block behind it is free only as the start of an extent.
        """
        blocks: list[int] = []
        if after + 1 in self._end_of:
            self._carve(after + 1, 0, count, blocks)
        while len(blocks) < count:
            start, end = self._largest()
            missing = count - len(blocks)
            slack = 0 if start == 0 else max(end - start + 1 - missing, 0)  # block 0 has no left neighbour
            self._carve(start, slack // 2, missing, blocks)
        self.num_free -= count
        return blocks

    def give(self, block: int) -> None:
        """One block is free again; joins the extents beside it."""
        start = self._start_of.pop(block - 1, block)
        end = self._end_of.pop(block + 1, block)
        self._insert(start, end)
        self.num_free += 1

    def extents(self) -> list[tuple[int, int]]:
        """(first block, last block) of every extent, ascending."""
        return sorted(self._end_of.items())

    def _carve(self, start: int, offset: int, count: int, blocks: list[int]) -> None:
        """Move up to `count` blocks of the extent at `start` to `blocks`, leaving `offset` before them."""
        end = self._end_of.pop(start)
        del self._start_of[end]
        first = start + offset
        last = min(first + count - 1, end)
        if offset:
            self._insert(start, first - 1)
        if last < end:
            self._insert(last + 1, end)
        blocks.extend(range(first, last + 1))

    def _insert(self, start: int, end: int) -> None:
        self._end_of[start] = end
        self._start_of[end] = start
        heappush(self._by_size, (start - end - 1, end))
        if len(self._by_size) > 2 * len(self._end_of) + _STALE_ENTRIES:
            self._by_size = [(start - end - 1, end) for start, end in self._end_of.items()]
            heapify(self._by_size)

    def _largest(self) -> tuple[int, int]:
        """First and last block of the largest extent. `take_one` shrinks extents without a word to the heap."""
        while True:
            negative_size, end = self._by_size[0]
            start = self._start_of.get(end)
            if start is None or end - start + 1 > -negative_size:
                heappop(self._by_size)  # gone, or merged: then there is a larger entry for it
            elif end - start + 1 < -negative_size:
                heapreplace(self._by_size, (start - end - 1, end))
            else:
                return start, end


class BlockManager:
    """All blocks of one engine."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.cache = PrefixCache()
        self._free = FreeExtents(num_blocks)
        self._num_users = [0] * num_blocks
        self._eviction_batch = max(1, num_blocks // _EVICTION_SHARE)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones and idle ones."""
        return self._free.num_free + self.cache.num_idle

    @property
    def num_in_use(self) -> int:
        return self.num_blocks - self.num_available

    def allocate(self, count: int, after: int = NOWHERE) -> list[int]:
        """`count` private blocks, behind `after` if possible. The caller has looked at `num_available` before."""
        if self._free.num_free < count:
            self._evict(count)
        blocks = self._free.take(count, after)
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def allocate_behind(self, lasts: list[int]) -> list[int]:
        """One private block per entry of `lasts`, behind it if possible: running sequences grow. As `allocate`."""
        if self._free.num_free < len(lasts):
            self._evict(len(lasts))
        blocks = list(map(self._free.take_one, lasts))
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def num_idle_of(self, blocks: Iterable[int]) -> int:
        """How many of these cached blocks `acquire` would take away from `num_available`."""
        return sum(map(self.cache.is_idle, blocks))

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more user for each of these cached blocks."""
        for block in blocks:
            if self._num_users[block] == 0:
                self.cache.unpark(block)
            self._num_users[block] += 1

    def release(self, blocks: list[int]) -> None:
        """One user less. A sequence's last blocks are parked first: its beginning is what others may share."""
        for block in reversed(blocks):
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                if block in self.cache:
                    self.cache.park(block)
                else:
                    self._free.give(block)

    def forget_prefixes(self) -> int:
        """No later sequence finds K/V of an earlier one; those that run keep what they have. Returns how many blocks were
        forgotten."""
        num_forgotten = len(self.cache)
        for block in self.cache.forget():
            self._free.give(block)
        return num_forgotten

    def check_integrity(self, num_users: dict[int, int]) -> None:
        """Every block is in exactly one place, and has the users the caller counted. O(num_blocks)."""
        free = {block for start, end in self._free.extents() for block in range(start, end + 1)}
        assert len(free) == self._free.num_free
        for block, users in enumerate(self._num_users):
            assert users == num_users.get(block, 0), f"{block=} {users=} expected={num_users.get(block, 0)}"
            places = (users > 0) + self.cache.is_idle(block) + (block in free)
            assert places == 1, f"{block=} is in {places} places"
        self.cache.check_integrity()

    def _evict(self, count: int) -> None:
        """Make at least `count` blocks free, and a batch at least."""
        num_wanted = max(count - self._free.num_free, min(self._eviction_batch, self.cache.num_idle))
        for _ in range(num_wanted):
            self._free.give(self.cache.evict())
