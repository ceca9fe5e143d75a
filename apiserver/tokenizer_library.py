"""The two libraries that know a tokenizer.json, behind one interface: `fastokens`, and `tokenizers`, which is the reference.

Both give up the GIL while they encode (`tokenizers` only in its batch calls, so those are used), and neither makes a
Python object per token before `tokenizers` hands over its list.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from fastokens import Tokenizer as FastTokenizer

from config.model_folder import ModelFolderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as ReferenceTokenizer

BYTES_PER_ID = 4


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Of a tokenizer's cache of segments, since its process began."""

    hits: int
    misses: int
    bytes: int


class TokenizerLibrary(Protocol):
    """Texts to token ids and back."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        """Per text its ids as little-endian u32."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary spells it."""
        ...

    def token_to_id(self, token: str) -> int | None: ...


class ReferenceLibrary:
    """tokenizers, read when it is first needed: where fastokens is exact that is hardly ever, and it takes 20 MB."""

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def loaded(self) -> "ReferenceTokenizer":
        """Raises ModelFolderError."""
        from tokenizers import Tokenizer as ReferenceTokenizer

        try:
            tokenizer = ReferenceTokenizer.from_file(self._path)
        except Exception as error:  # the library raises bare Exceptions
            raise ModelFolderError(f"{self._path} cannot be read: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        encodings = self.loaded.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [array("I", encoding.ids).tobytes() for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.loaded.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def id_to_token(self, id: int) -> str | None:
        return self.loaded.id_to_token(id)

    def token_to_id(self, token: str) -> int | None:
        return self.loaded.token_to_id(token)


class FastLibrary:
    """fastokens; a text that exceeds the limits of its regex engine, or has one of the characters `unlike` the reference's,
    goes to the reference."""

    def __init__(self, content: str, reference: ReferenceLibrary, cache_bytes: int, *, unlike: str = "") -> None:
        """`content`: of a tokenizer.json. Raises bare Exceptions, as the library does, for what it does not know."""
        self._reference, self._unlike = reference, unlike
        self._tokenizer = FastTokenizer.from_json_str(content)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.enable_segment_cache(cache_bytes)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        if any(not text.isascii() and any(character in text for character in self._unlike) for text in texts):
            return self._reference.encode(texts, add_special_tokens=add_special_tokens)
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(list(texts), add_special_tokens=add_special_tokens)
        except ValueError:  # a run of a million spaces, say: backtracking ends at a bound
            return self._reference.encode(texts, add_special_tokens=add_special_tokens)
        if len(texts) == 1:
            return [ids]
        ends = [end * BYTES_PER_ID for end in memoryview(offsets).cast("Q").tolist()]
        return [ids[start:end] for start, end in pairwise(ends)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens)
        return text

    def id_to_token(self, id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(id)
        return token

    def token_to_id(self, token: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def cache_stats(self) -> CacheStats | None:
        stats = self._tokenizer.segment_cache_stats()
        return CacheStats(stats["hits"], stats["misses"], stats["bytes"]) if stats else None
