"""Text becomes token ids and ids become text: by `fastokens` where it is exact, by `tokenizers` where it is not.

fastokens is a drop-in in Rust, 8 to 20 times faster, with a cache of segments seen before. Whether it is exact for this
model is checked when the model is loaded (apiserver.tokenizer_check); any difference and `tokenizers` is used instead, with
a log line.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from apiserver.tokenizer_check import is_exact_in_child, probes_of
from apiserver.tokenizer_library import CacheStats, FastLibrary, ReferenceLibrary, TokenizerLibrary
from apiserver.tokenizer_spelling import UNLIKE, respelled
from config.model_folder import ModelFolder, ModelFolderError

logger = logging.getLogger(__name__)

SEGMENT_CACHE_BYTES = 32 << 20

assert sys.byteorder == "little", "token ids travel as little-endian words"


class Tokenizer:
    """One model's tokenizer in one process."""

    def __init__(self, library: TokenizerLibrary, max_chars_per_token: int | None) -> None:
        self._library = library
        self.max_chars_per_token = max_chars_per_token
        """No token stands for more characters; None: nothing is known."""

    @property
    def is_fast(self) -> bool:
        return isinstance(self._library, FastLibrary)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        """Per text its token ids as little-endian u32, as they travel to the engine. Callable from any thread."""
        return self._library.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Callable from any thread."""
        return self._library.decode(ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._library.id_to_token(id)

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def cache_stats(self) -> CacheStats | None:
        """None: this tokenizer has no cache."""
        return self._library.cache_stats() if isinstance(self._library, FastLibrary) else None


def load_tokenizer(model: ModelFolder) -> Tokenizer:
    """Raises ModelFolderError. Starts no thread in this process."""
    # A worker has one core to itself: fastokens' own threads would only spin on the neighbours'. Read at first encoding.
    for threads in ("FASTOKENS_BPE_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(threads, "1")
    try:
        text = model.tokenizer_path.read_text(encoding="utf-8")
        content: dict[str, Any] = msgspec.json.decode(text)  # Any: tokenizer.json
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ModelFolderError(f"{model.tokenizer_path} cannot be read: {error}") from None
    library = _exact_library(str(model.tokenizer_path), text, content, model.vocab_size)
    return Tokenizer(library, _max_chars_per_token(content))


def _exact_library(path: str, text: str, content: dict[str, Any], vocab_size: int) -> TokenizerLibrary:
    reference, probes = ReferenceLibrary(path), probes_of(content)
    try:
        for fast in _fast_libraries(text, content, reference):
            if is_exact_in_child(fast, reference, probes, vocab_size):
                return fast
    except Exception as error:  # what fastokens does not know it refuses
        reference.loaded  # noqa: B018  # raises what is wrong with the file
        logger.warning("fastokens cannot read this tokenizer, tokenizers is used", extra={"reason": str(error)})
        return reference
    reference.loaded  # noqa: B018
    logger.warning("fastokens differs from tokenizers on this model, tokenizers is used")
    return reference


def _fast_libraries(text: str, content: dict[str, Any], reference: ReferenceLibrary) -> Iterator[FastLibrary]:
    """The fastest first."""
    faster = respelled(content)
    if faster is not None:
        yield FastLibrary(msgspec.json.encode(faster).decode(), reference, SEGMENT_CACHE_BYTES, unlike=UNLIKE)
    yield FastLibrary(text, reference, SEGMENT_CACHE_BYTES)


_NORMALIZER_SHRINKS = {None: 1, "NFC": 4}  # characters that may become one: canonical decompositions have at most four


def _max_chars_per_token(content: dict[str, Any]) -> int | None:
    """For byte-level BPE, whose tokens are the text cut into pieces. Added tokens that swallow spaces leave no bound."""
    normalizer, added = content.get("normalizer"), content.get("added_tokens") or []
    shrink = _NORMALIZER_SHRINKS.get(normalizer["type"] if normalizer else None)
    is_byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel" and content["model"].get("type") == "BPE"
    swallows = any(entry.get("lstrip") or entry.get("rstrip") for entry in added)
    if shrink is None or swallows or not is_byte_level:
        return None
    return shrink * max(map(len, [*content["model"]["vocab"], *(entry["content"] for entry in added)]))
