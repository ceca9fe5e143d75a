"""Stop strings in a text that arrives in pieces: found wherever the pieces break, the earliest in the text first."""

from collections.abc import Sequence


class StopStrings:
    """Holds back the longest end of the text that could still become a stop string."""

    def __init__(self, strings: Sequence[str], *, include_in_output: bool) -> None:
        self._strings = tuple(strings)
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None  # the stop string that was found; the text behind it is lost

    def feed(self, text: str) -> str:
        """What may be given out. After a match: the text up to it, then nothing more."""
        if self.matched is not None:
            return ""
        text = self._held + text
        start, stop = min(
            ((at, stop) for stop in self._strings if (at := text.find(stop)) >= 0),
            key=lambda found: found[0],
            default=(-1, ""),
        )
        if start >= 0:
            self.matched, self._held = stop, ""
            return text[: start + len(stop) if self._include else start]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and became nothing."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        longest = 0
        for stop in self._strings:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
