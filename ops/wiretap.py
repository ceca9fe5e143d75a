"""`tokenfleet wiretap`: what a running fleet's processes say to each other, decoded, as it is said.

Messages come from the broker's tap, ring records out of the rings themselves, through the supervisor's descriptors and
read-only: an observer can neither slow nor disturb the fleet. Messages are decoded with the `msgpack` package and not
with the fleet's own codec, so that a fault in the one is seen by the other.
"""

import mmap
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import zmq

from ipc import parcel
from ipc.messages import Kind, generation_of, number_of, slot_of
from ipc.record import unpack_record
from ipc.ring import MAGIC, RECORD_HEADER_BYTES, RING_HEADER_BYTES
from ops import exit_codes
from ops.run_folder import Manifest, RingEntry, the_fleet

POLL_MS = 20
_HEADER = struct.Struct("<IIQII")  # length, generation, position, checksum, kind
_DATA = 1


def run(pid: int | None) -> int:
    """Print until interrupted or until the fleet is gone. Raises WhichFleet."""
    fleet = the_fleet(pid)
    with zmq.Context() as context, context.socket(zmq.SUB) as tap:
        tap.setsockopt(zmq.SUBSCRIBE, b"")
        tap.connect(fleet.tap_endpoint)
        watch(fleet, tap)
    return exit_codes.OK


def watch(fleet: Manifest, tap: "zmq.Socket[bytes]") -> None:
    rings = [RingObserver(fleet.supervisor_pid, entry) for entry in fleet.rings]
    while Path(f"/proc/{fleet.supervisor_pid}").exists():
        if tap.poll(POLL_MS):
            print(message_line(tap.recv_multipart()), flush=True)
        for ring in rings:
            for line in ring.new_lines():
                print(line, flush=True)


def message_line(frames: list[bytes]) -> str:
    """`frames` are the direction and a parcel."""
    direction, packed = frames
    kind = Kind(parcel.envelope_of(packed).kind)
    _, *fields = msgpack.unpackb(parcel.body_of(packed), raw=False)
    shown = " ".join(_shown(field) for field in fields)
    num_ids = len(parcel.prompt_of(packed)) // 4
    ids = f" prompt={num_ids} tokens" if kind == Kind.GENERATE else f" ids={num_ids}" if num_ids else ""
    return f"{_now()} {direction.decode()} {kind.name.lower()} {shown}{ids}"


class RingObserver:
    """One ring, read beside its reader: keeps a cursor of its own and skips what it was too slow for."""

    def __init__(self, supervisor_pid: int, entry: RingEntry) -> None:
        self._name = f"engine {entry.engine} => worker {entry.slot}"
        path = f"/proc/{supervisor_pid}/fd/{entry.fd}"
        fd = os.open(path, os.O_RDONLY)
        try:
            self._map = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        if self._map[:8] != MAGIC:
            raise SystemExit(f"tokenfleet: {path} is not a ring of this version")
        self._capacity = int.from_bytes(self._map[8:16], "little")
        self._seen = self._tail()

    def new_lines(self) -> Iterator[str]:
        """A line per record published since the last call."""
        tail = self._tail()
        if tail - self._seen > self._capacity // 2:
            yield f"{_now()} {self._name}: {tail - self._seen} bytes passed unseen"
            self._seen = tail
        while self._seen < tail:
            place = self._seen & (self._capacity - 1)
            room_to_end = self._capacity - place
            if room_to_end < RECORD_HEADER_BYTES:
                self._seen += room_to_end
                continue
            start = RING_HEADER_BYTES + place
            header = self._map[start : start + RECORD_HEADER_BYTES]
            length, generation, position, checksum, kind = _HEADER.unpack(header)
            payload = self._map[start + RECORD_HEADER_BYTES : start + RECORD_HEADER_BYTES + length]
            if position != self._seen or zlib.crc32(payload, zlib.crc32(header[:16])) != checksum:
                self._seen = tail  # overwritten meanwhile
                return
            if kind == _DATA:
                self._seen += RECORD_HEADER_BYTES + length + 7 & -8
                yield f"{_now()} {self._name} generation={generation} {_record(payload)}"
            else:
                self._seen += room_to_end

    def _tail(self) -> int:
        return int.from_bytes(self._map[64:72], "little")


def _record(payload: bytes) -> str:
    record = unpack_record(payload)
    parts = []
    if record.streams:
        parts.append("tokens " + " ".join(f"{s}:{t}" for s, t in zip(record.streams, record.tokens, strict=True)))
    parts += [f"bulk {stream}: {len(ids)} tokens" for stream, ids in record.bulks]
    parts += [f"scored {s.stream}: {s.token} logprob={s.logprob:.3f}" for s in record.scored]
    parts += [f"finish {f.stream}: code={f.code} output={f.num_output_tokens} tokens" for f in record.finishes]
    parts += [f"failure {f.stream}: code={f.code} {f.message}" for f in record.failures]
    return "; ".join(parts)


def _shown(field: object) -> str:
    """Stream ids taken apart, bytes by their length."""
    if isinstance(field, bytes):
        return f"<{len(field)} bytes>"
    if isinstance(field, int) and field >= 1 << 32:
        return f"{slot_of(field)}.{generation_of(field)}.{number_of(field)}"
    if isinstance(field, list):
        return "[" + " ".join(_shown(item) for item in field) + "]"
    return str(field)


def _now() -> str:
    return f"{time.monotonic():.4f}"
