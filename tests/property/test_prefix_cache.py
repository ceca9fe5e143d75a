"""A cached prefix is never returned for other tokens, whatever was published and evicted before."""

import hypothesis.strategies as st
from hypothesis import given, settings

from engine_core.prefix_cache import PrefixCache
from ipc.block_hash import HASH_BYTES, chain

BLOCK_SIZE = 2
prompts = st.lists(st.integers(0, 2), max_size=10)


def links_of(tokens: list[int]) -> list[bytes]:
    joined = chain(b"".join(t.to_bytes(4, "little") for t in tokens), BLOCK_SIZE)
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]


@given(steps=st.lists(st.tuples(prompts, st.integers(0, 3)), max_size=30))
@settings(deadline=None)
def test_a_match_is_the_longest_prefix_that_was_computed_and_not_evicted(steps: list[tuple[list[int], int]]) -> None:
    cache = PrefixCache()
    content: dict[int, list[int]] = {}  # block -> all tokens up to its end, as computed
    next_block = 0
    for tokens, num_evictions in steps:
        links = links_of(tokens)

        matched = cache.match(links)

        expected = 0
        while expected < len(links) and tokens[: (expected + 1) * BLOCK_SIZE] in content.values():
            expected += 1
        assert len(matched) == expected
        for position, block in enumerate(matched):
            assert content[block] == tokens[: (position + 1) * BLOCK_SIZE]

        for position in range(len(links)):
            prefix = tokens[: (position + 1) * BLOCK_SIZE]
            if prefix not in content.values():
                cache.publish(next_block, links[position])
                cache.park(next_block)
                content[next_block] = prefix
                next_block += 1
        for _ in range(min(num_evictions, cache.num_idle)):
            del content[cache.evict()]
        cache.check_integrity()


@given(order=st.permutations(range(6)), touched=st.sets(st.integers(0, 5)))
def test_eviction_takes_the_least_recently_used_first(order: list[int], touched: set[int]) -> None:
    cache = PrefixCache()
    for block in order:
        cache.publish(block, block.to_bytes(HASH_BYTES, "little"))
        cache.park(block)
    for block in sorted(touched):
        cache.unpark(block)
        cache.park(block)

    evicted = [cache.evict() for _ in order]

    assert evicted == [block for block in order if block not in touched] + sorted(touched)


def test_the_first_of_two_equal_blocks_stays_cached() -> None:
    cache = PrefixCache()
    link = bytes(HASH_BYTES)

    cache.publish(3, link)
    cache.publish(5, link)

    assert cache.match([link]) == [3]
    assert 5 not in cache
