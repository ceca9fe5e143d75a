"""Which tokens every unfinished stream of one worker has been given, kept in the order they came.

A record's token section is put away whole, 8 bytes a token: one copy per engine step, nothing per token. Sections from
before the oldest unfinished stream are let go. What is left beyond `max_bytes`, behind a stream that lives long, is
sorted by stream, 4 bytes a token, a little with every step; only the tokens of unfinished streams are kept there.
"""

from array import array
from collections import deque
from collections.abc import Collection

TRIM_BYTES = 64 * 1024  # growth between two looks at what can go: half a millisecond of sorting


class TokenLog:
    """`begin` and `end` bracket a stream; `note` takes sections in between; `tokens_of` is O(everything), for the rare day."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0  # of unsorted sections
        self._max_bytes = max_bytes
        self._trim_at = TRIM_BYTES
        self._sections: deque[bytes] = deque()
        self._first = 0  # index of the first section, counted from the beginning of time
        self._begun: dict[int, int] = {}  # stream number -> index of the first section it may stand in; oldest first
        self._sorted: dict[int, array[int]] = {}

    def begin(self, number: int, token_ids: "array[int] | None" = None) -> None:
        """A stream that has been given `token_ids` already, as a rule none."""
        self._begun[number] = self._first + len(self._sections)
        if token_ids:
            self._sorted[number] = array("I", token_ids)

    def end(self, number: int) -> None:
        self._begun.pop(number, None)
        self._sorted.pop(number, None)

    def note(self, section: memoryview | bytes) -> None:
        """Stream numbers, then as many token ids, all u32. Copied."""
        self._sections.append(bytes(section))
        self.num_bytes += len(section)
        if self.num_bytes >= self._trim_at:
            self._trim()

    def tokens_of(self, numbers: Collection[int]) -> "dict[int, array[int]]":
        """What each of these streams was given, in order."""
        found = {number: array("I", self._sorted.get(number, ())) for number in numbers}
        for index, section in enumerate(self._sections, self._first):
            self._sort(section, index, found)
        return found

    def _trim(self) -> None:
        oldest = next(iter(self._begun.values()), self._first + len(self._sections))
        while self._first < oldest:
            self._pop_section()
        while self.num_bytes > self._max_bytes:
            index = self._first
            section = self._pop_section()
            for number in _numbers_of(section):
                if number in self._begun and number not in self._sorted:
                    self._sorted[number] = array("I")
            self._sort(section, index, self._sorted)
        self._trim_at = self.num_bytes + TRIM_BYTES

    def _pop_section(self) -> bytes:
        section = self._sections.popleft()
        self._first += 1
        self.num_bytes -= len(section)
        return section

    def _sort(self, section: bytes, index: int, tokens: "dict[int, array[int]]") -> None:
        """Append the section's tokens to those of its streams that are keys and had begun by then."""
        token_ids = memoryview(section)[len(section) // 2 :].cast("I").tolist()
        for number, token_id in zip(_numbers_of(section), token_ids, strict=True):
            if number in tokens and self._begun.get(number, index + 1) <= index:
                tokens[number].append(token_id)


def _numbers_of(section: bytes) -> list[int]:
    return memoryview(section)[: len(section) // 2].cast("I").tolist()
