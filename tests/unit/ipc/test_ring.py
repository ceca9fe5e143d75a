"""The ring's contract: order, fullness, generations, padding, corruption, and taking over from the dead."""

import zlib

import pytest

from ipc.errors import LayoutMismatch, RingCorrupt
from ipc.ring import (
    RECORD_HEADER_BYTES,
    RING_HEADER_BYTES,
    RingReader,
    RingWriter,
    format_ring,
    ring_segment_bytes,
)

CAPACITY = 4096


def make_ring() -> memoryview:
    view = memoryview(bytearray(ring_segment_bytes(CAPACITY)))
    format_ring(view, CAPACITY)
    return view


def polled(reader: RingReader) -> list[bytes]:
    payloads = [bytes(payload) for payload in reader.poll()]
    reader.release()
    return payloads


def test_records_come_out_in_order() -> None:
    view = make_ring()
    writer, reader = RingWriter(view), RingReader(view, generation=1)

    for payload in (b"one!", b"twotwo!!", b""):
        assert writer.try_publish(payload, 1)

    assert polled(reader) == [b"one!", b"twotwo!!", b""]
    assert polled(reader) == []


def test_full_ring_refuses_without_blocking_and_takes_more_after_release() -> None:
    view = make_ring()
    writer, reader = RingWriter(view), RingReader(view, generation=1)
    payload = b"x" * 1000

    accepted = 0
    while writer.try_publish(payload, 1):
        accepted += 1

    assert accepted == CAPACITY // (RECORD_HEADER_BYTES + 1000)
    assert len(reader.poll()) == accepted
    assert not writer.try_publish(payload, 1), "polled but not released: the bytes are still being read"
    reader.release()
    assert writer.try_publish(payload, 1)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 236, 1004, 2000])
def test_no_record_wraps_at_any_place_of_the_ring(length: int) -> None:
    view = make_ring()
    writer, reader = RingWriter(view), RingReader(view, generation=1)

    for turn in range(300):
        payload = bytes([turn % 256]) * length
        assert writer.try_publish(payload, 1)
        assert polled(reader) == [payload]


def test_payload_beyond_the_maximum_is_an_error_not_a_full_ring() -> None:
    view = make_ring()
    writer = RingWriter(view)

    with pytest.raises(ValueError, match="at most"):
        writer.try_publish(b"x" * (writer.max_payload_bytes + 1), 1)

    assert writer.try_publish(b"x" * writer.max_payload_bytes, 1)


def test_new_reader_drops_what_was_for_the_one_before_it() -> None:
    view = make_ring()
    writer, _ = RingWriter(view), RingReader(view, generation=1)
    writer.try_publish(b"before the death", 1)

    reader = RingReader(view, generation=2)
    writer.try_publish(b"late for the dead", 1)
    writer.try_publish(b"for the living", 2)

    assert writer.reader_generation == 2
    assert polled(reader) == [b"for the living"]


def test_new_writer_goes_on_where_the_last_one_published() -> None:
    view = make_ring()
    reader = RingReader(view, generation=1)
    RingWriter(view).try_publish(b"first life", 1)

    RingWriter(view).try_publish(b"second life", 1)

    assert polled(reader) == [b"first life", b"second life"]


def test_half_written_record_of_a_killed_writer_is_never_seen() -> None:
    view = make_ring()
    reader = RingReader(view, generation=1)
    writer = RingWriter(view)
    writer.try_publish(b"whole", 1)
    tail_place = RING_HEADER_BYTES + RECORD_HEADER_BYTES + 8
    view[tail_place : tail_place + 40] = b"\xff" * 40  # died before the tail store

    successor = RingWriter(view)
    successor.try_publish(b"after", 1)

    assert polled(reader) == [b"whole", b"after"]


@pytest.mark.parametrize("place", [0, 4, 8, 16, RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + 7])
def test_flipped_byte_is_detected_and_resync_goes_on(place: int) -> None:
    view = make_ring()
    writer, reader = RingWriter(view), RingReader(view, generation=1)
    writer.try_publish(b"payload!", 1)
    view[RING_HEADER_BYTES + place] ^= 0x40

    with pytest.raises(RingCorrupt, match="position=0"):
        reader.poll()

    reader.resync()
    writer.try_publish(b"healthy", 1)
    assert polled(reader) == [b"healthy"]


def test_checksum_covers_header_and_payload() -> None:
    view = make_ring()
    RingWriter(view).try_publish(b"abcd", 7)

    header = bytes(view[RING_HEADER_BYTES : RING_HEADER_BYTES + RECORD_HEADER_BYTES])

    assert int.from_bytes(header[16:20], "little") == zlib.crc32(header[:16] + b"abcd")


def test_segment_of_another_layout_is_refused() -> None:
    view = make_ring()
    view[6:8] = b"99"

    with pytest.raises(LayoutMismatch, match="TFRING99"):
        RingWriter(view)


@pytest.mark.parametrize("capacity", [0, 1000, 2048, 4097])
def test_capacity_must_be_a_power_of_two(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        format_ring(memoryview(bytearray(8192)), capacity)
