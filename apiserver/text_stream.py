"""The text of one choice: detokenizer, stop strings and the fast path over both.

Where a choice has no stop strings and nothing is held back, a token's text comes ready-made out of the token table; any
other token, and everything behind it until the detokenizer is clean again, takes the exact way. Both give the same bytes.
"""

from collections.abc import Sequence

from apiserver.detokenizer import (
    Decoder,
    Detokenizer,
    FallbackDetokenizer,
    TableDetokenizer,
    WindowDetokenizer,
)
from apiserver.stop_strings import StopStrings
from apiserver.token_table import TokenTable, escape


class TextStream:
    """Feed it ids as they come; `finish` once, unless a stop string matched."""

    __slots__ = (
        "_detokenizer", "_escaped", "_has_stop_token", "_min_tokens", "_stop", "has_stop_strings", "num_tokens", "ready",
    )  # fmt: skip

    def __init__(
        self,
        table: TokenTable | None,
        decoder: Decoder,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        """Of the special tokens that are skipped, those in `shown_ids` are shown."""
        self._detokenizer = _detokenizer(table, decoder, skip_special_tokens, shown_ids)
        self._stop = StopStrings(stop, include_in_output=include_stop) if stop else None
        self._escaped = table.escaped if table is not None and self._stop is None else None
        self._min_tokens = min_tokens
        self._has_stop_token = include_stop
        self.has_stop_strings = self._stop is not None
        self.num_tokens = 0
        self.ready: list[bytes | None] | None = None
        """The token table, while a whole token's text may be taken from it as it stands (and counted); else None."""
        self._look_whether_ready()

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.matched if self._stop is not None else None

    def feed_escaped(self, token_ids: Sequence[int]) -> bytes:
        """The text these ids complete, as it stands inside a JSON string; empty while it is held back."""
        table = self.ready
        if table is not None:
            pieces = [table[number] for number in token_ids]
            if None not in pieces:
                self.num_tokens += len(pieces)
                return b"".join(pieces)  # type: ignore[arg-type]  # no None among them
        piece = escape(self.feed(token_ids))
        self._look_whether_ready()
        return piece

    def feed(self, token_ids: Sequence[int]) -> str:
        """The exact way. After a stop string has matched nothing comes any more, and nothing is counted."""
        if self._stop is None:
            self.num_tokens += len(token_ids)
            return self._detokenizer.feed(token_ids)
        if self._stop.matched is not None:
            return ""
        parts = []
        for number in token_ids:  # one by one: the text ends, and counts, with the token that completes the stop string
            self.num_tokens += 1
            text = self._detokenizer.feed((number,))
            parts.append(self._stop.feed(text, may_match=self.num_tokens > self._min_tokens))
            if self._stop.matched is not None:
                break
        return "".join(parts)

    def _look_whether_ready(self) -> None:
        self.ready = self._escaped if self._detokenizer.is_clean else None

    def finish(self, stop_token_id: int | None = None) -> str:
        """What is still held back when the engine has ended the sequence, by this token if by one."""
        text = ""
        if stop_token_id is not None and self._has_stop_token:
            text = self.feed((stop_token_id,))
        if self._stop is None:
            return text + self._detokenizer.finish()
        if self._stop.matched is None:
            text += self._stop.feed(self._detokenizer.finish(), may_match=self.num_tokens > self._min_tokens)
        return text + self._stop.finish()


def _detokenizer(
    table: TokenTable | None, decoder: Decoder, skip_special_tokens: bool, shown_ids: frozenset[int]
) -> Detokenizer:
    if table is None:  # the tokenizer's own decode skips all of them or none
        return WindowDetokenizer(decoder, skip_special_tokens=skip_special_tokens and not shown_ids)
    skipped_ids = table.special_ids if skip_special_tokens else frozenset()
    if shown_ids:
        skipped_ids -= shown_ids
    if table.byte_fallback is None:
        return TableDetokenizer(table, skipped_ids)
    return FallbackDetokenizer(table, skipped_ids)
