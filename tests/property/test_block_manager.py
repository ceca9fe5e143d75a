"""The block manager against a model that knows only who owns which block and which are cached."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from engine_core.block_manager import NOWHERE, BlockManager

NUM_BLOCKS = 24


class BlockManagerMachine(RuleBasedStateMachine):
    """Owners are lists of blocks, as a sequence's block table is."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(NUM_BLOCKS)
        self.live: list[list[int]] = []
        self.link_of: dict[int, bytes] = {}  # every publication that must still hold: block in use -> link
        self.num_links = 0

    @rule(target=owners, count=st.integers(1, 8), is_continued=st.booleans())
    def allocate(self, count: int, is_continued: bool) -> object:
        if count > self.manager.num_available:
            return multiple()
        in_use = self._users()
        idle_before = self.manager.cache.num_idle
        free_before = self.manager.num_available - idle_before
        after = self.live[-1][-1] if is_continued and self.live else NOWHERE

        blocks = self.manager.allocate(count, after)

        assert len(set(blocks)) == count
        assert not in_use.keys() & set(blocks)
        if count <= free_before:
            assert self.manager.cache.num_idle == idle_before, "a cached block was evicted while free ones were left"
        self.live.append(blocks)
        return blocks

    @rule(owner=owners)
    def grow(self, owner: list[int]) -> None:
        if not self.manager.num_available:
            return
        in_use = self._users()

        (block,) = self.manager.allocate_behind([owner[-1]])

        assert block not in in_use
        owner.append(block)

    @rule()
    def forget_prefixes(self) -> None:
        num_cached, num_available = len(self.manager.cache), self.manager.num_available

        assert self.manager.forget_prefixes() == num_cached

        assert (len(self.manager.cache), self.manager.num_available) == (0, num_available)
        self.link_of.clear()

    @rule(owner=owners)
    def publish(self, owner: list[int]) -> None:
        for block in owner:
            if block not in self.manager.cache:
                self.num_links += 1
                self.link_of[block] = self.num_links.to_bytes(16, "little")
                self.manager.cache.publish(block, self.link_of[block])

    @rule(target=owners, owner=owners)
    def share(self, owner: list[int]) -> object:
        cached = [block for block in owner if block in self.manager.cache]
        if not cached:
            return multiple()
        found = self.manager.cache.match([self.link_of[block] for block in cached])
        assert found == cached
        self.manager.acquire(found)
        self.live.append(found)
        return found

    @rule(owner=consumes(owners))
    def release(self, owner: list[int]) -> None:
        available = self.manager.num_available
        last_users = [block for block in owner if self._users()[block] == 1]

        self.manager.release(owner)

        self.live = [other for other in self.live if other is not owner]
        assert self.manager.num_available == available + len(last_users)

    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        """A prefix that nobody uses any more is found again, on the block it was computed in."""
        idle = [block for block in self.link_of if self.manager.cache.is_idle(block)]
        if not idle:
            return
        block = data.draw(st.sampled_from(idle))
        available = self.manager.num_available

        assert self.manager.cache.match([self.link_of[block]]) == [block]
        self.manager.acquire([block])

        assert self.manager.num_available == available - 1
        self.manager.release([block])

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        self.manager.check_integrity(self._users())

    @invariant()
    def what_is_in_use_stays_cached_under_its_own_link(self) -> None:
        for block in self._users():
            if block in self.manager.cache:
                assert self.manager.cache.match([self.link_of[block]]) == [block]

    def _users(self) -> dict[int, int]:
        users: dict[int, int] = {}
        for owner in self.live:
            for block in owner:
                users[block] = users.get(block, 0) + 1
        return users


TestBlockManager = BlockManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
