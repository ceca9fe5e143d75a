"""A worker's shelf of finished answers: its worker writes, every worker of the fleet reads. Bytes, little-endian.

offset      size  field        stored by   meaning
     0         8  magic        creator     b"TFSHLF01": the last two digits are the layout version
     8         8  num_entries  creator
    16         8  data_bytes   creator
    64         8  next_number  its worker  number of the next entry, from 1
    72         8  tail         its worker  bytes ever written, fillings at the end of the area included
   128   64 each  entries      its worker  that of number n stands at n % num_entries, see _ENTRY
     …    8 each  removed      any worker  the number of the entry that was removed from this place
     …         -  data         its worker  a cursor's place is cursor % data_bytes; no payload wraps

Entries and bytes are overwritten oldest first: what the shelf holds is bounded, and never needs collecting. There is no lock.
A reader copies and then compares checksums, of the entry and of its payload; what is torn or overwritten meanwhile is as
good as absent. Its worker may be killed at any instruction: an unfinished entry fails its checksum, and the successor in
the slot goes on behind the cursors. Removing is one store by whoever does it, of a number that is never used again.
"""

import struct
import zlib

from msgspec import Struct

from ipc.errors import LayoutMismatch

MAGIC = b"TFSHLF01"
HEADER_BYTES = 128
ENTRY_BYTES = 64
MAX_SHARE = 8  # a payload may take this part of the area
_NUM_ENTRIES, _DATA_BYTES, _NEXT_NUMBER, _TAIL = 1, 2, 8, 9  # indices of 8-byte words
_ENTRY = struct.Struct("<QQQQdQI")  # number, secret, cursor, length, stored_s, owner, checksum of the payload
_CHECK = struct.Struct("<I")  # of the entry, behind it
_LOOKS = 20  # at an entry that is being replaced


class Key(Struct, frozen=True):
    """Which entry: `secret` is 64 random bits, so that no one can guess it from its number."""

    number: int
    secret: int


def shelf_segment_bytes(num_entries: int, data_bytes: int) -> int:
    return HEADER_BYTES + num_entries * (ENTRY_BYTES + 8) + data_bytes


def format_shelf(view: memoryview, num_entries: int, data_bytes: int) -> None:
    """Write the header of an empty shelf into zeroed memory."""
    view[8:24] = struct.pack("<QQ", num_entries, data_bytes)
    view[:8] = MAGIC


class Shelf:
    """One mapped shelf. Only the worker that owns it calls `next_key` and `put`."""

    def __init__(self, view: memoryview) -> None:
        """Raises LayoutMismatch."""
        if bytes(view[:8]) != MAGIC:
            raise LayoutMismatch(f"shelf with magic {bytes(view[:8])!r}, expected {MAGIC!r}")
        self._words = view[:HEADER_BYTES].cast("Q")
        self._num_entries, self._data_bytes = self._words[_NUM_ENTRIES], self._words[_DATA_BYTES]
        removed_at = HEADER_BYTES + self._num_entries * ENTRY_BYTES
        data_at = removed_at + 8 * self._num_entries
        self._entries = view[HEADER_BYTES:removed_at]
        self._removed = view[removed_at:data_at].cast("Q")
        self._data = view[data_at : data_at + self._data_bytes]

    @property
    def max_payload_bytes(self) -> int:
        return self._data_bytes // MAX_SHARE

    def next_key(self, secret: int) -> Key:
        """For an entry that `put` may store later, or never."""
        number = max(self._words[_NEXT_NUMBER], 1)
        self._words[_NEXT_NUMBER] = number + 1
        return Key(number, secret)

    def put(self, key: Key, payload: bytes, *, owner: int, now_s: float) -> bool:
        """Store or replace it. False: it is too long, or was so long under way that newer ones have its place.

        `owner` is a number that readers must know; `now_s` is CLOCK_MONOTONIC, the same in all processes.
        """
        if len(payload) > self.max_payload_bytes:
            return False
        place = key.number % self._num_entries
        if self._number_at(place) > key.number:
            return False
        cursor = self._words[_TAIL]
        start = cursor % self._data_bytes
        if start + len(payload) > self._data_bytes:
            cursor, start = cursor + self._data_bytes - start, 0
        self._data[start : start + len(payload)] = payload
        self._words[_TAIL] = cursor + len(payload)
        entry = _ENTRY.pack(key.number, key.secret, cursor, len(payload), now_s, owner, zlib.crc32(payload))
        at = place * ENTRY_BYTES
        self._entries[at : at + ENTRY_BYTES] = (entry + _CHECK.pack(zlib.crc32(entry))).ljust(ENTRY_BYTES, b"\0")
        return True

    def get(self, key: Key, *, owner: int, oldest_s: float) -> bytes | None:
        """The payload, unless it was removed, overwritten, stored before `oldest_s`, or is another owner's."""
        place = key.number % self._num_entries
        if not key.number or self._removed[place] == key.number:
            return None
        for _ in range(_LOOKS):
            entry = self._entry_at(place)
            if entry is None:
                continue  # its worker is just replacing it
            number, secret, cursor, length, stored_s, entry_owner, checksum = entry
            if (number, secret, entry_owner) != (key.number, key.secret, owner) or stored_s < oldest_s:
                return None
            start = cursor % self._data_bytes
            payload = bytes(self._data[start : start + length])
            if zlib.crc32(payload) == checksum:
                return payload
        return None

    def remove(self, key: Key, *, owner: int, oldest_s: float) -> bool:
        """False when it is not there anyway."""
        if self.get(key, owner=owner, oldest_s=oldest_s) is None:
            return False
        self._removed[key.number % self._num_entries] = key.number
        return True

    def _entry_at(self, place: int) -> tuple[int, int, int, int, float, int, int] | None:
        at = place * ENTRY_BYTES
        entry = bytes(self._entries[at : at + ENTRY_BYTES])
        if zlib.crc32(entry[: _ENTRY.size]) != _CHECK.unpack_from(entry, _ENTRY.size)[0]:
            return None
        fields: tuple[int, int, int, int, float, int, int] = _ENTRY.unpack_from(entry)
        return fields

    def _number_at(self, place: int) -> int:
        return int.from_bytes(self._entries[place * ENTRY_BYTES : place * ENTRY_BYTES + 8], "little")
