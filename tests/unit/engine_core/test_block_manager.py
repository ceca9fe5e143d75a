"""BlockManager: placement and the order of giving up; see tests/property for the model."""

import random

import pytest

from engine_core.block_manager import BlockManager, FreeExtents


def test_a_growing_sequence_stays_one_run_beside_others() -> None:
    manager = BlockManager(1000)
    tables = [manager.allocate(10) for _ in range(8)]

    for _ in range(20):
        for table, block in zip(tables, manager.allocate_behind([table[-1] for table in tables]), strict=True):
            table.append(block)

    assert all(table == list(range(table[0], table[0] + 30)) for table in tables)


def test_a_new_run_starts_in_the_middle_of_the_largest_extent() -> None:
    free = FreeExtents(100)
    assert free.take(10) == list(range(10))

    assert free.take(20) == list(range(45, 65))
    assert free.extents() == [(10, 44), (65, 99)]


def test_a_need_larger_than_any_extent_takes_few_runs() -> None:
    free = FreeExtents(30)
    taken = free.take(30)
    for block in (*taken[2:5], *taken[10:20], *taken[25:27]):
        free.give(block)

    blocks = free.take(12)

    assert blocks[:10] == list(range(10, 20))
    assert free.num_free == 3


def test_freed_neighbours_become_one_extent() -> None:
    free = FreeExtents(8)
    taken = free.take(8)
    random.Random(1).shuffle(taken)

    for block in taken:
        free.give(block)

    assert free.extents() == [(0, 7)]


def test_an_extent_that_shrank_is_found_at_its_present_size() -> None:
    free = FreeExtents(40)
    free.take(40)
    for block in (*range(1, 11), *range(20, 28)):
        free.give(block)
    for after in range(4):
        assert free.take_one(after) == after + 1

    assert free.take(1)[0] in range(20, 28)


def test_the_heap_of_extents_stays_small_over_a_long_life() -> None:
    free = FreeExtents(64)
    blocks = free.take(64)
    for turn in range(20_000):
        free.give(blocks[turn % 64])
        blocks[turn % 64] = free.take(1)[0]

    assert len(free._by_size) < 2000


def test_cached_blocks_are_evicted_only_when_no_free_one_is_left_and_oldest_first() -> None:
    manager = BlockManager(6)
    first, second = manager.allocate(2), manager.allocate(2)
    links = {block: bytes([block]) * 16 for block in (*first, *second)}
    for block, link in links.items():
        manager.cache.publish(block, link)
    manager.release(first)
    manager.release(second)

    manager.allocate(2)
    assert manager.cache.num_idle == 4

    assert manager.allocate(1) == [first[1]], "the end of the older prefix goes first"
    assert manager.cache.match([links[first[0]]]) == [first[0]]


def test_a_shared_block_is_available_again_after_its_last_user() -> None:
    manager = BlockManager(4)
    blocks = manager.allocate(2)
    manager.cache.publish(blocks[0], bytes(16))
    manager.acquire(blocks[:1])

    manager.release(blocks)
    assert manager.num_available == 3

    manager.release(blocks[:1])
    assert manager.num_available == 4 and manager.num_in_use == 0


def test_integrity_check_sees_a_leaked_block() -> None:
    manager = BlockManager(4)
    manager.allocate(1)

    with pytest.raises(AssertionError, match="users=1 expected=0"):
        manager.check_integrity({})
