"""PrefixCache: matches and the order of forgetting; see tests/property for the model."""

from engine_core.prefix_cache import PrefixCache

A, B, C = (bytes([n]) * 16 for n in range(3))


def cached(*links: bytes) -> PrefixCache:
    cache = PrefixCache()
    for block, link in enumerate(links):
        cache.publish(block, link)
    return cache


def test_a_match_ends_at_the_first_miss() -> None:
    cache = cached(A, C)

    assert cache.match([A, B, C]) == [0]
    assert cache.match([B, C]) == []


def test_an_evicted_block_is_not_found_again() -> None:
    cache = cached(A, B)
    cache.park(1)
    cache.park(0)

    assert cache.evict() == 1
    assert cache.match([A, B]) == [0]
    assert 1 not in cache and len(cache) == 1


def test_a_block_in_use_is_not_idle() -> None:
    cache = cached(A)
    cache.park(0)
    assert cache.is_idle(0) and cache.num_idle == 1

    cache.unpark(0)

    assert not cache.is_idle(0) and cache.num_idle == 0
