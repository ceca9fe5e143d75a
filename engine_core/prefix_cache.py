"""Which KV block holds which piece of which prefix, and in what order unused ones are forgotten. No torch here.

A block is cached once it is full and computed, under its chained hash (ipc.block_hash): equal hash means equal tokens
from the very start, so a chain of hits is a prefix. A cached block that no sequence uses is idle: it keeps its K/V
until the block manager needs the memory, least recently used first.
"""

from collections import OrderedDict
from collections.abc import Iterable


class PrefixCache:
    """Two dictionaries and an order. Reference counts are the block manager's."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._link_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def __len__(self) -> int:
        return len(self._link_of)

    def __contains__(self, block: int) -> bool:
        return block in self._link_of

    def match(self, links: Iterable[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of this chain."""
        blocks = []
        for link in links:
            block = self._block_of.get(link)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, block: int, link: bytes) -> None:
        """Offer a full, computed block. Where an equal one is cached already, that one stays and this stays private."""
        if link not in self._block_of and block not in self._link_of:
            self._block_of[link] = block
            self._link_of[block] = link

    def park(self, block: int) -> None:
        """Its last user is gone: from now on it may be evicted, after all that were parked before it."""
        self._idle[block] = None

    def unpark(self, block: int) -> None:
        """Somebody uses it again."""
        del self._idle[block]

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def evict(self) -> int:
        """Forget the least recently used idle block and return it. There must be one."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._link_of.pop(block)]
        return block

    def forget(self) -> list[int]:
        """Everything: no chain matches any more. Returns the blocks that were idle, as `evict` would; those in use go on
        without a name."""
        idle = list(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._link_of.clear()
        return idle

    def check_integrity(self) -> None:
        """Both dictionaries say the same, and only cached blocks are idle."""
        assert {link: block for block, link in self._link_of.items()} == self._block_of
        assert self._idle.keys() <= self._link_of.keys()
