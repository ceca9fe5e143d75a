"""Token ids become text, as they come: no character is ever split, and all pieces together are the tokenizer's decode.

Bytes that are not yet a whole character are held back; what is still held at the end becomes U+FFFD, as a decode of
the whole sequence has it. Three kinds: over the token table, one for each kind of table, and over the tokenizer's own
decode for the rest.
"""

import codecs
import re
from collections.abc import Sequence
from typing import Protocol

from apiserver.token_table import TokenTable


class Detokenizer(Protocol):
    """One sequence on its way to text."""

    @property
    def is_clean(self) -> bool:
        """Nothing is held back: a token that is whole by itself may be appended as it stands."""
        ...

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text these tokens complete."""
        ...

    def finish(self) -> str:
        """What is left."""
        ...


_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TableDetokenizer:
    """Over the byte strings of a TokenTable."""

    __slots__ = ("_decoder", "_pieces", "_skipped", "is_clean")

    def __init__(self, table: TokenTable, skipped_ids: frozenset[int]) -> None:
        self._pieces, self._skipped = table.pieces, skipped_ids
        self._decoder = _Utf8Decoder(errors="replace")  # replaces as Rust's lossy decoding does
        self.is_clean = True

    def feed(self, token_ids: Sequence[int]) -> str:
        pieces, skipped = self._pieces, self._skipped
        data = b"".join([pieces[number] or b"" for number in token_ids if number not in skipped])
        text = self._decoder.decode(data)
        self.is_clean = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        self.is_clean = True
        return self._decoder.decode(b"", True)


class FallbackDetokenizer:
    """Over a TokenTable with byte fallback, as the decoder steps Replace, ByteFallback, Fuse, Strip have it.

    A run of byte tokens is one piece of UTF-8 or, if it is not, one U+FFFD per byte: it is held back until it ends.
    """

    def __init__(self, table: TokenTable, skipped_ids: frozenset[int]) -> None:
        assert table.byte_fallback is not None
        self._pieces, self._byte_ids = table.pieces, table.byte_fallback.byte_ids
        self._skipped = skipped_ids
        self._run = bytearray()
        self._num_to_strip = table.byte_fallback.num_stripped
        self.is_clean = self._num_to_strip == 0

    def feed(self, token_ids: Sequence[int]) -> str:
        parts: list[str] = []
        for number in token_ids:
            piece = self._pieces[number]
            if piece is None or number in self._skipped:
                continue
            if number in self._byte_ids:
                self._run += piece
            else:
                parts += self._end_run(), piece.decode()
        return self._without_leading("".join(parts))

    def finish(self) -> str:
        return self._without_leading(self._end_run())

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _without_leading(self, text: str) -> str:
        while text and self._num_to_strip:
            if text[0] != " ":
                self._num_to_strip = 0
            else:
                self._num_to_strip -= 1
                text = text[1:]
        self.is_clean = not self._run and not self._num_to_strip
        return text


class Decoder(Protocol):
    """The part of a tokenizer that is used here."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...
    def id_to_token(self, id: int) -> str | None: ...


class WindowDetokenizer:
    """Over any tokenizer: decodes a window of the last ids again and gives what is new.

    Decoders look at neighbours: a leading space is dropped at the start of the text only; a run of byte tokens that is not
    UTF-8 as a whole becomes one U+FFFD per byte. So text counts as settled only behind a token that is not a byte, and not
    while it ends in U+FFFD; and the window starts with tokens that have text by themselves.
    """

    is_clean = False  # no token stands for itself here

    def __init__(self, decoder: Decoder, *, skip_special_tokens: bool) -> None:
        self._decoder, self._skip = decoder, skip_special_tokens
        self._ids: list[int] = []  # the window: settled ids for context, then ids whose text was not given out
        self._num_settled = 0
        self._ends_in_byte = False

    def feed(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        for token_id in token_ids:
            if _BYTE_TOKEN.fullmatch(self._decoder.id_to_token(token_id) or ""):
                self._ends_in_byte = True  # also the byte of a space, which has no text when it stands alone
            elif self._decode([token_id]):  # what has no text does not end a run of bytes
                self._ends_in_byte = False
        if self._ends_in_byte:
            return ""
        new = self._new_text()
        if new.endswith("\ufffd"):
            return ""
        self._settle()
        return new

    def finish(self) -> str:
        new = self._new_text()
        self._settle()
        return new

    def _new_text(self) -> str:
        before = self._decode(self._ids[: self._num_settled])
        return self._decode(self._ids)[len(before) :]

    def _settle(self) -> None:
        if self._decode(self._ids[self._num_settled :]):
            del self._ids[: self._num_settled]
        self._num_settled = len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=self._skip)


_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
