"""One token ring: one engine writes, one worker reads. Sizes and offsets are bytes, integers little-endian.

offset  size  field       stored by  meaning
     0     8  magic       creator    b"TFRING01": the last two digits are the layout version
     8     8  capacity    creator    length of the record area, a power of two
    64     8  tail        engine     bytes ever published
   128     8  head        worker     bytes ever consumed
   136     8  generation  worker     generation of the worker that reads; 0: nobody yet
   192     -  records     engine     a cursor's place is cursor & (capacity - 1)

A record starts at a multiple of 8 and never wraps; a padding record fills the end of the area when the next one does
not fit there, and an end too short for a header is skipped by both sides.

offset  size  field       meaning
     0     4  length      payload bytes
     4     4  generation  the worker generation the payload is for
     8     8  position    tail cursor at which this record starts: its sequence number
    16     4  checksum    zlib.crc32 of the 16 bytes before and of the payload
    20     4  kind        DATA or PADDING
    24     -  payload     see ipc.record

Cursors only grow, each has one storing process and a cache line of its own (Aeron's log buffers and the LMAX Disruptor
have this shape). The tail is stored last and publishes everything before it. CPython has no fences: on x86-64 the store
order is the hardware's, elsewhere a reader may see the tail before the bytes; the position and the checksum tell, and
the reader looks again. Either side may be killed at any instruction: an unfinished record was never published, an
unfinished read is read again by nobody, since the next worker starts at the tail and drops what is for another
generation.
"""

import struct
import sys
import time
import zlib

from ipc.errors import LayoutMismatch, RingCorrupt

MAGIC = b"TFRING01"
RING_HEADER_BYTES = 192
RECORD_HEADER_BYTES = 24
_CAPACITY, _TAIL, _HEAD, _GENERATION = 1, 8, 16, 17  # indices of 8-byte words
_DATA, _PADDING = 1, 2
_CHECKED = struct.Struct("<IIQ")  # what the checksum covers besides the payload
_CHECK = struct.Struct("<II")
_LOOKS = 200  # looks at an unreadable record before it counts as corrupt: about 20 ms


def ring_segment_bytes(capacity: int) -> int:
    return RING_HEADER_BYTES + capacity


def format_ring(view: memoryview, capacity: int) -> None:
    """Write the header of an empty ring into zeroed memory. `capacity` is a power of two of at least 4096."""
    if capacity < 4096 or capacity & (capacity - 1):
        raise ValueError(f"ring capacity {capacity} is not a power of two of at least 4096")
    view[8:16] = capacity.to_bytes(8, "little")
    view[:8] = MAGIC


def _words(view: memoryview) -> tuple[memoryview, int]:
    """The 8-byte words of the header and the capacity. Raises LayoutMismatch."""
    if bytes(view[:8]) != MAGIC:
        raise LayoutMismatch(f"ring of layout {bytes(view[:8])!r}, this process speaks {MAGIC!r}")
    words = view[:RING_HEADER_BYTES].cast("Q")
    return words, words[_CAPACITY]


def used_share(view: memoryview) -> float:
    """How full a ring is, 0 to 1, for an observer that is neither of its sides."""
    capacity, tail, head = (
        int.from_bytes(view[word * 8 : word * 8 + 8], "little") for word in (_CAPACITY, _TAIL, _HEAD)
    )
    return max(0, tail - head) / capacity


class RingWriter:
    """The engine's side. A new writer on a used ring goes on where the last one published."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._words, self._capacity = _words(view)
        self._mask = self._capacity - 1
        self.max_payload_bytes = self._capacity // 2 - RECORD_HEADER_BYTES
        """A larger payload is refused with ValueError, however empty the ring is."""
        self._tail = self._words[_TAIL]
        self._head_seen = self._words[_HEAD]  # private copy of the far cursor

    @property
    def reader_generation(self) -> int:
        """Generation of the worker that reads now; 0 before the first one."""
        return self._words[_GENERATION]

    @property
    def used_bytes(self) -> int:
        return self._tail - self._words[_HEAD]

    def try_publish(self, payload: bytes, generation: int) -> bool:
        """Append one record for that worker generation. False when the worker is a whole ring behind; never blocks."""
        if len(payload) > self.max_payload_bytes:
            raise ValueError(f"payload of {len(payload)} bytes, at most {self.max_payload_bytes} fit")
        record_bytes = RECORD_HEADER_BYTES + len(payload) + 7 & -8
        room_to_end = self._capacity - (self._tail & self._mask)
        skipped_bytes = room_to_end if room_to_end < record_bytes else 0
        free_from = self._tail + skipped_bytes + record_bytes - self._capacity
        if free_from > self._head_seen:
            self._head_seen = self._words[_HEAD]  # pairs with the head store in RingReader.release
            if free_from > self._head_seen:
                return False
        if skipped_bytes >= RECORD_HEADER_BYTES:
            self._write(self._tail, generation, _PADDING, b"")
        position = self._tail + skipped_bytes
        self._write(position, generation, _DATA, payload)
        self._tail = position + record_bytes
        self._words[_TAIL] = self._tail  # publishes the bytes above; pairs with the tail load in RingReader.poll
        return True

    def _write(self, position: int, generation: int, kind: int, payload: bytes) -> None:
        checked = _CHECKED.pack(len(payload), generation, position)
        header = checked + _CHECK.pack(zlib.crc32(payload, zlib.crc32(checked)), kind)
        place = RING_HEADER_BYTES + (position & self._mask)
        self._view[place : place + RECORD_HEADER_BYTES] = header
        if payload:
            place += RECORD_HEADER_BYTES
            self._view[place : place + len(payload)] = payload


class RingReader:
    """The worker's side. A new reader forgets what was published for the one before it."""

    def __init__(self, view: memoryview, generation: int) -> None:
        self._view = view
        self._words, self._capacity = _words(view)
        self._mask = self._capacity - 1
        self._generation = generation
        self._words[_GENERATION] = generation  # pairs with the load in RingWriter.reader_generation
        self._head = self._words[_TAIL]
        self._words[_HEAD] = self._head  # frees what nobody will read; pairs with the head load in try_publish

    def poll(self, max_records: int = sys.maxsize) -> list[memoryview]:
        """Payloads of the records published for this generation, in order; valid until `release`.

        Raises RingCorrupt when a published record stays unreadable; `resync` then skips everything published so far.
        """
        tail = self._words[_TAIL]  # pairs with the tail store in RingWriter.try_publish
        payloads: list[memoryview] = []
        while self._head < tail and len(payloads) < max_records:
            room_to_end = self._capacity - (self._head & self._mask)
            if room_to_end < RECORD_HEADER_BYTES:
                self._head += room_to_end
                continue
            length, generation, kind = self._checked_header(self._head)
            if kind == _PADDING:
                self._head += room_to_end
                continue
            if generation == self._generation:
                start = RING_HEADER_BYTES + (self._head & self._mask) + RECORD_HEADER_BYTES
                payloads.append(self._view[start : start + length])
            self._head += RECORD_HEADER_BYTES + length + 7 & -8
        return payloads

    def release(self) -> None:
        """Give the space of every polled record back to the writer."""
        self._words[_HEAD] = self._head  # pairs with the head load in RingWriter.try_publish

    def resync(self) -> None:
        """Skip everything published so far: the way out of RingCorrupt."""
        self._head = self._words[_TAIL]
        self.release()

    def _checked_header(self, position: int) -> tuple[int, int, int]:
        """Length, generation and kind of the record at `position`, once its bytes are all visible."""
        for _ in range(_LOOKS):
            place = RING_HEADER_BYTES + (position & self._mask)
            checked = self._view[place : place + 16]
            length, generation, stamp = _CHECKED.unpack(checked)
            if stamp == position and length <= self._capacity - (position & self._mask) - RECORD_HEADER_BYTES:
                checksum, kind = _CHECK.unpack(self._view[place + 16 : place + RECORD_HEADER_BYTES])
                payload = self._view[place + RECORD_HEADER_BYTES : place + RECORD_HEADER_BYTES + length]
                if zlib.crc32(payload, zlib.crc32(checked)) == checksum:
                    return length, generation, kind
            time.sleep(0.0001)  # never on x86-64: the bytes are visible before the tail is
        raise RingCorrupt(f"record at position={position} is unreadable: length={length} stamp={stamp}")
