"""Stop strings in a text that arrives in pieces: found wherever they break, the first to be complete first, as in vLLM."""

from collections.abc import Sequence


class StopStrings:
    """Holds back the longest end of the text that could still become a stop string."""

    def __init__(self, strings: Sequence[str], *, include_in_output: bool) -> None:
        """No string is empty."""
        self._strings = tuple(strings)
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None  # the stop string that was found; the text behind it is lost

    def feed(self, piece: str, *, may_match: bool = True) -> str:
        """What may be given out. After a match: the text up to it, then nothing more.

        A match ends inside this piece; it may begin before it, also in pieces that could not match themselves.
        """
        if self.matched is not None:
            return ""
        text = self._held + piece
        if may_match:
            at, stop = self._first_match(text)
            if stop is not None:
                self.matched, self._held = stop, ""
                return text[: at + len(stop) if self._include else at]
        keep = held_length(text, self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and became nothing."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str | None]:
        """Place and string of the match that ends first; of two that end at one place, the one the client named first. So it
        does not matter which characters came together."""
        first, found, first_end = len(text), None, len(text) + 1
        for stop in self._strings:
            at = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if at >= 0 and at + len(stop) < first_end:
                first, found, first_end = at, stop, at + len(stop)
        return first, found


def held_length(text: str, strings: Sequence[str]) -> int:
    """Characters of the longest end of the text that is the beginning, but not the whole, of one of the strings."""
    longest = 0
    for string in strings:
        at = text.find(string[0], max(0, len(text) - len(string) + 1))
        while 0 <= at < len(text) - longest:
            if string.startswith(text[at:]):
                longest = len(text) - at
                break
            at = text.find(string[0], at + 1)
    return longest
