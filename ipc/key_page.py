"""What each API key has used lately: a page per worker slot, written by its worker alone, read by all. 8-byte words.

offset  size  field       stored by   meaning
     0     8  magic       creator     b"TFKEYS01": the last two digits are the layout version
    64  64 each  rows     its worker  4096 rows, found from key_id % 4096 upwards

A row, one cache line:

     0  key_id      first 8 bytes of the key's SHA-256; 0: free, and no row is behind it
     8  minute      of CLOCK_MONOTONIC, 1 for the first: what `requests` and `tokens` count
    16  requests    begun in that minute
    24  tokens      of prompts and answers, counted when a request ends
    32  requests_before, 40 tokens_before    of the minute before
    48  in_flight   requests that have not ended

Nothing is locked: a worker adds to its own rows and sums everybody's. A request is admitted by one look and one store
without a pause between them, so that at a limit of n requests no more than n plus the other workers, less those that
have looked later, get in: n + workers - 1. A reader may meet a row in the middle of its turn to another minute; it
then counts one minute's worth too few or too many, once.

The rate is that of a sliding minute: what this minute has, and of the minute before the part that still is within 60 s.
So a limit of n a minute lets n be used in any minute of the clock, and never more than 2n in any 60 s.
"""

import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from ipc.errors import LayoutMismatch
from ipc.segment import Segment

MAGIC = b"TFKEYS01"
NUM_ROWS = 4096
MINUTE_S = 60.0
_ROW_WORDS = 8
_HEADER_WORDS = 8
_KEY_ID, _MINUTE, _REQUESTS, _TOKENS, _REQUESTS_BEFORE, _TOKENS_BEFORE, _IN_FLIGHT = range(7)


class KeyUse(Struct):
    """Of one key by the whole fleet, in this minute and the one before."""

    requests: int = 0
    tokens: int = 0
    requests_before: int = 0
    tokens_before: int = 0
    in_flight: int = 0
    minute_age_s: float = 0.0  # how much of this minute is over


def create_key_segment(slot: int) -> Segment:
    """Pages cost nothing until a key is used."""
    segment = Segment.create(f"tokenfleet-keys-{slot}", 8 * (_HEADER_WORDS + _ROW_WORDS * NUM_ROWS))
    segment.view[:8] = MAGIC
    return segment


class KeyPages:
    """All pages, as the worker of `slot` has them. `is_alive` says whether a slot has a process: what the dead had in
    flight does not count."""

    def __init__(
        self,
        views: Sequence[memoryview],
        slot: int,
        is_alive: Callable[[int], bool],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises LayoutMismatch."""
        for view in views:
            if bytes(view[:8]) != MAGIC:
                raise LayoutMismatch(f"key page with magic {bytes(view[:8])!r}, expected {MAGIC!r}")
        self._pages = [view.cast("Q") for view in views]
        self._own, self._slot, self._is_alive, self._clock_s = self._pages[slot], slot, is_alive, clock_s
        self._known: frozenset[int] = frozenset()
        for row in range(_HEADER_WORDS, len(self._own), _ROW_WORDS):  # of the predecessor in this slot
            if self._own[row + _IN_FLIGHT]:
                self._own[row + _IN_FLIGHT] = 0

    def set_known(self, key_ids: frozenset[int]) -> None:
        """The keys there are: rows of others may be taken once nothing of them is in flight."""
        self._known = key_ids

    def use_of(self, key_id: int) -> KeyUse:
        minute, minute_age_s = self._now()
        use = KeyUse(minute_age_s=minute_age_s)
        for slot, page in enumerate(self._pages):
            row = _row_or_none(page, key_id)
            if row is None:
                continue
            if page[row + _MINUTE] == minute:
                use.requests += page[row + _REQUESTS]
                use.tokens += page[row + _TOKENS]
                use.requests_before += page[row + _REQUESTS_BEFORE]
                use.tokens_before += page[row + _TOKENS_BEFORE]
            elif page[row + _MINUTE] == minute - 1:
                use.requests_before += page[row + _REQUESTS]
                use.tokens_before += page[row + _TOKENS]
            if slot == self._slot or self._is_alive(slot):
                use.in_flight += page[row + _IN_FLIGHT]
        return use

    def begin(self, key_id: int) -> None:
        row = self._current_row(key_id)
        self._own[row + _REQUESTS] += 1
        self._own[row + _IN_FLIGHT] += 1

    def end(self, key_id: int, num_tokens: int) -> None:
        row = self._current_row(key_id)
        self._own[row + _TOKENS] += num_tokens
        self._own[row + _IN_FLIGHT] -= 1

    def _now(self) -> tuple[int, float]:
        minutes, age_s = divmod(self._clock_s(), MINUTE_S)
        return int(minutes) + 1, age_s

    def _current_row(self, key_id: int) -> int:
        """This worker's row, turned to the present minute."""
        own = self._own
        row = _row_or_none(own, key_id)
        if row is None:
            row = self._claim(key_id)
        minute, _ = self._now()
        if own[row + _MINUTE] != minute:
            is_next = own[row + _MINUTE] == minute - 1
            own[row + _REQUESTS_BEFORE] = own[row + _REQUESTS] if is_next else 0
            own[row + _TOKENS_BEFORE] = own[row + _TOKENS] if is_next else 0
            own[row + _REQUESTS] = own[row + _TOKENS] = 0
            own[row + _MINUTE] = minute
        return row

    def _claim(self, key_id: int) -> int:
        """A free row, or that of a key there is no more. Their numbers are bounded: one is always found."""
        own = self._own
        for step in range(NUM_ROWS):
            row = _HEADER_WORDS + (key_id + step) % NUM_ROWS * _ROW_WORDS
            is_forgotten = own[row] not in self._known and not own[row + _IN_FLIGHT]
            if not own[row] or is_forgotten:
                for word in range(1, _ROW_WORDS):
                    own[row + word] = 0
                own[row] = key_id  # publishes the row; pairs with the load in _row_or_none
                return row
        raise AssertionError(f"{NUM_ROWS} keys have requests in flight")


def _row_or_none(page: memoryview, key_id: int) -> int | None:
    for step in range(NUM_ROWS):
        row = _HEADER_WORDS + (key_id + step) % NUM_ROWS * _ROW_WORDS
        found = page[row]
        if found == key_id:
            return row
        if not found:
            return None
    return None
