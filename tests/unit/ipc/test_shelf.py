"""The shelf's contract: what is stored is found by its key alone, bounded in entries, bytes and age, whoever dies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import LayoutMismatch
from ipc.shelf import HEADER_BYTES, Key, Shelf, format_shelf, shelf_segment_bytes

NUM_ENTRIES, DATA_BYTES = 4, 1024


def make_view() -> memoryview:
    view = memoryview(bytearray(shelf_segment_bytes(NUM_ENTRIES, DATA_BYTES)))
    format_shelf(view, NUM_ENTRIES, DATA_BYTES)
    return view


def stored(shelf: Shelf, payload: bytes, *, secret: int = 7, owner: int = 0, now_s: float = 1.0) -> Key:
    key = shelf.next_key(secret)
    assert shelf.put(key, payload, owner=owner, now_s=now_s)
    return key


def found(shelf: Shelf, key: Key, *, owner: int = 0, oldest_s: float = 0.0) -> bytes | None:
    return shelf.get(key, owner=owner, oldest_s=oldest_s)


def test_another_process_reads_what_was_stored() -> None:
    view = make_view()
    key = stored(Shelf(view), b"an answer")

    assert found(Shelf(view), key) == b"an answer"


@pytest.mark.parametrize("key", [Key(1, 8), Key(2, 7), Key(1 + NUM_ENTRIES, 7), Key(0, 0), Key(0, 7)])
def test_only_the_whole_key_finds_it(key: Key) -> None:
    shelf = Shelf(make_view())
    assert stored(shelf, b"an answer") == Key(1, 7)

    assert found(shelf, key) is None


def test_another_owner_finds_nothing_and_removes_nothing() -> None:
    shelf = Shelf(make_view())
    key = stored(shelf, b"mine", owner=1)

    assert found(shelf, key, owner=2) is None
    assert not shelf.remove(key, owner=2, oldest_s=0)
    assert found(shelf, key, owner=1) == b"mine"


def test_what_is_older_than_asked_for_is_gone() -> None:
    shelf = Shelf(make_view())
    key = stored(shelf, b"old", now_s=10.0)

    assert found(shelf, key, oldest_s=9.9) == b"old"
    assert found(shelf, key, oldest_s=10.1) is None


def test_removed_stays_removed_and_its_place_is_used_again() -> None:
    view = make_view()
    writer, other = Shelf(view), Shelf(view)
    key = stored(writer, b"secret")

    assert other.remove(key, owner=0, oldest_s=0)

    assert found(writer, key) is None
    assert not other.remove(key, owner=0, oldest_s=0)
    later = [stored(writer, b"%d" % number) for number in range(NUM_ENTRIES)]
    assert [found(other, key) for key in later] == [b"0", b"1", b"2", b"3"]


def test_an_entry_may_be_replaced() -> None:
    shelf = Shelf(make_view())
    key = stored(shelf, b"under way")

    assert shelf.put(key, b"done", owner=0, now_s=2.0)

    assert found(shelf, key) == b"done"


def test_too_long_a_payload_is_refused_and_the_rest_stays() -> None:
    shelf = Shelf(make_view())
    key = stored(shelf, b"x" * shelf.max_payload_bytes)

    assert not shelf.put(shelf.next_key(7), b"x" * (shelf.max_payload_bytes + 1), owner=0, now_s=1.0)

    assert found(shelf, key) is not None


def test_a_straggler_never_takes_the_place_of_a_newer_one() -> None:
    shelf = Shelf(make_view())
    straggler = shelf.next_key(7)
    newer = [stored(shelf, b"new") for _ in range(NUM_ENTRIES)]

    assert not shelf.put(straggler, b"late", owner=0, now_s=1.0)

    assert all(found(shelf, key) == b"new" for key in newer)


def test_a_successor_goes_on_where_its_predecessor_was_killed() -> None:
    view = make_view()
    kept = stored(Shelf(view), b"kept")
    torn = stored(Shelf(view), b"torn")
    at = HEADER_BYTES + 64 * (torn.number % NUM_ENTRIES)
    view[at + 16] ^= 1  # killed in the middle of the entry

    successor = Shelf(view)
    new = stored(successor, b"new")

    assert found(successor, torn) is None
    assert (found(successor, kept), found(successor, new)) == (b"kept", b"new")


def test_memory_that_is_no_shelf_is_refused() -> None:
    with pytest.raises(LayoutMismatch):
        Shelf(memoryview(bytearray(shelf_segment_bytes(NUM_ENTRIES, DATA_BYTES))))


@given(st.lists(st.integers(0, DATA_BYTES // 8), max_size=60))
def test_the_newest_are_found_whole_and_the_oldest_are_gone(lengths: list[int]) -> None:
    shelf = Shelf(make_view())
    keys = [stored(shelf, bytes([number]) * length) for number, length in enumerate(lengths)]

    for number, (key, length) in enumerate(zip(keys, lengths, strict=True)):
        payload = found(shelf, key)
        assert payload is None or payload == bytes([number]) * length
        is_recent = number >= len(keys) - NUM_ENTRIES  # four payloads of an eighth fit twice over
        assert (payload is not None) == is_recent
