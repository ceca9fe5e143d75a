"""Finished responses of the whole fleet: stored by the worker that made them, read and removed by any.

A response's id says where it lies: "resp_", then 4 hexadecimal digits of the worker's slot, 12 of the entry's number and 16
that nobody can guess. So a request reaches it from whichever worker the kernel gave the connection to, without a word to
another process; and a response outlives its worker, though not the fleet.
"""

import re
import secrets
import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from ipc.shelf import Key, Shelf

PREFIX = "resp_"
_ID = re.compile(PREFIX + "([0-9a-f]{4})([0-9a-f]{12})([0-9a-f]{16})")


class StoredResponse(Struct, array_like=True, frozen=True):
    """JSON: `response` is the object as clients read it, `items` a list of all that was said up to and including it."""

    response: bytes
    items: bytes


class ResponseStore:
    """As one worker has it. `owner` is a number per API key: a key finds only what was stored with it."""

    def __init__(self, shelves: Sequence[Shelf], slot: int, *, max_age_s: float) -> None:
        self._shelves, self._slot, self._max_age_s = shelves, slot, max_age_s

    def new_id(self) -> str:
        """For a response that `put` may store once it is finished."""
        key = self._shelves[self._slot].next_key(secrets.randbits(64))
        return f"{PREFIX}{self._slot:04x}{key.number:012x}{key.secret:016x}"

    def put(self, response_id: str, stored: StoredResponse, *, owner: int) -> bool:
        """False when it is too long, or so many were stored since its id was given that it would be the first to go."""
        place = self._place_or_none(response_id)
        assert place is not None
        shelf, key = place
        return shelf.put(key, msgspec.msgpack.encode(stored), owner=owner, now_s=time.monotonic())

    def get(self, response_id: str, *, owner: int) -> StoredResponse | None:
        place = self._place_or_none(response_id)
        if place is None:
            return None
        shelf, key = place
        payload = shelf.get(key, owner=owner, oldest_s=self._oldest_s())
        return None if payload is None else msgspec.msgpack.decode(payload, type=StoredResponse)

    def remove(self, response_id: str, *, owner: int) -> bool:
        """False when there is none."""
        place = self._place_or_none(response_id)
        if place is None:
            return False
        shelf, key = place
        return shelf.remove(key, owner=owner, oldest_s=self._oldest_s())

    def _oldest_s(self) -> float:
        return time.monotonic() - self._max_age_s

    def _place_or_none(self, response_id: str) -> tuple[Shelf, Key] | None:
        """None for what is no id of this fleet."""
        parts = _ID.fullmatch(response_id)
        if parts is None:
            return None
        slot, number, secret = (int(part, 16) for part in parts.groups())
        return (self._shelves[slot], Key(number, secret)) if slot < len(self._shelves) else None
