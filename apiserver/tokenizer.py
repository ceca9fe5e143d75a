"""Text becomes token ids: by `fastokens` where it is exact, by `tokenizers` where it is not.

fastokens is a drop-in in Rust, 8 to 20 times faster, with a cache of segments seen before. Whether it is exact for this
model is checked when the model is loaded, on a corpus of scripts, code, white space and the model's special tokens; any
difference and `tokenizers` is used instead, with a log line. The check runs in a forked child, so that whatever the
libraries start or break stays there: the zygote that loads this must not have a thread when it forks the workers.

Both give up the GIL while they encode (`tokenizers` only in its batch calls, so those are used), and neither makes a
Python object per token before `tokenizers` hands over its list.
"""

import logging
import os
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import msgspec
from fastokens import Tokenizer as FastTokenizer
from tokenizers import Tokenizer as ReferenceTokenizer

from apiserver.probe_corpus import PROBES
from config.model_folder import ModelFolder, ModelFolderError

logger = logging.getLogger(__name__)

SEGMENT_CACHE_BYTES = 32 << 20
MAX_PROBED_ADDED_TOKENS = 64
BYTES_PER_ID = 4

assert sys.byteorder == "little", "token ids travel as little-endian words"


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Of a tokenizer's cache of segments, since its process began."""

    hits: int
    misses: int
    bytes: int


class Encoder(Protocol):
    """One library's way from texts to token ids."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        """Per text its ids as little-endian u32."""
        ...


class FastEncoder:
    """fastokens; a text that exceeds the limits of its regex engine goes to the reference."""

    def __init__(self, tokenizer: FastTokenizer, reference: "ReferenceEncoder") -> None:
        self._tokenizer, self._reference = tokenizer, reference

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(list(texts), add_special_tokens=add_special_tokens)
        except ValueError:  # a run of a million spaces, say: backtracking ends at a bound
            return self._reference.encode(texts, add_special_tokens=add_special_tokens)
        if len(texts) == 1:
            return [ids]
        ends = [end * BYTES_PER_ID for end in memoryview(offsets).cast("Q").tolist()]
        return [ids[start:end] for start, end in pairwise(ends)]

    def cache_stats(self) -> CacheStats | None:
        stats = self._tokenizer.segment_cache_stats()
        return CacheStats(stats["hits"], stats["misses"], stats["bytes"]) if stats else None


class ReferenceEncoder:
    """tokenizers."""

    def __init__(self, tokenizer: ReferenceTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [array("I", encoding.ids).tobytes() for encoding in encodings]


class Tokenizer:
    """One model's tokenizer in one process."""

    def __init__(self, encoder: Encoder, reference: ReferenceTokenizer, max_chars_per_token: int | None) -> None:
        self._encoder, self._reference = encoder, reference
        self.max_chars_per_token = max_chars_per_token
        """No token stands for more characters; None: nothing is known."""

    @property
    def is_fast(self) -> bool:
        return isinstance(self._encoder, FastEncoder)

    @property
    def decoder(self) -> ReferenceTokenizer:
        """For detokenizers that need the library's own decode."""
        return self._reference

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        """Per text its token ids as little-endian u32, as they travel to the engine. Callable from any thread."""
        return self._encoder.encode(texts, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Callable from any thread."""
        return self._reference.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def cache_stats(self) -> CacheStats | None:
        """None: this tokenizer has no cache."""
        return self._encoder.cache_stats() if isinstance(self._encoder, FastEncoder) else None

    def token_of(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._reference.id_to_token(token_id)


def load_tokenizer(model: ModelFolder) -> Tokenizer:
    """Raises ModelFolderError. Starts no thread in this process."""
    # A worker has one core to itself: fastokens' own threads would only spin on the neighbours'. Read at first encoding.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    path = str(model.tokenizer_path)
    try:
        reference = ReferenceTokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exceptions
        raise ModelFolderError(f"{path} cannot be read: {error}") from None
    reference.no_truncation()
    reference.no_padding()
    content = msgspec.json.decode(model.tokenizer_path.read_bytes())
    encoder = _exact_encoder(path, reference, _probes(content))
    return Tokenizer(encoder, reference, _max_chars_per_token(content, reference))


def _exact_encoder(path: str, reference: ReferenceTokenizer, probes: list[str]) -> Encoder:
    reference_encoder = ReferenceEncoder(reference)
    try:
        fast = FastTokenizer.from_file(path)
    except Exception as error:  # what fastokens does not know it refuses
        logger.warning("fastokens cannot read this tokenizer, tokenizers is used", extra={"reason": str(error)})
        return reference_encoder
    fast.no_truncation()
    fast.no_padding()
    fast.enable_segment_cache(SEGMENT_CACHE_BYTES)
    encoder = FastEncoder(fast, reference_encoder)
    if not is_exact_in_child(encoder, reference_encoder, probes):
        logger.warning("fastokens differs from tokenizers on this model, tokenizers is used")
        return reference_encoder
    return encoder


def is_exact_in_child(encoder: Encoder, reference: Encoder, probes: list[str]) -> bool:
    """Whether both give the same ids for every probe, cold and out of a cache. A crash of the child is a no."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if _is_exact(encoder, reference, probes) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status == 0


def _is_exact(encoder: Encoder, reference: Encoder, probes: list[str]) -> bool:
    for special in (False, True):
        expected = reference.encode(probes, add_special_tokens=special)
        if encoder.encode(probes, add_special_tokens=special) != expected:
            return False
        again = [encoder.encode([probe], add_special_tokens=special)[0] for probe in probes]
        if again != expected:
            return False
    return True


def _probes(content: dict[str, Any]) -> list[str]:  # Any: tokenizer.json
    """The corpus, the corpus between the model's added tokens, and those inside text."""
    added = [entry["content"] for entry in content.get("added_tokens") or []][:MAX_PROBED_ADDED_TOKENS]
    between = [f"{token}{probe}{token}" for token in added[:3] for probe in PROBES]
    return [*PROBES, *between, "".join(added), " ".join(added), *(f"a {token}b\n{token} {token}" for token in added)]


_NORMALIZER_SHRINKS = {None: 1, "NFC": 4}  # characters that may become one: canonical decompositions have at most four


def _max_chars_per_token(content: dict[str, Any], reference: ReferenceTokenizer) -> int | None:
    """For byte-level BPE, whose tokens are the text cut into pieces. Added tokens that swallow spaces leave no bound."""
    normalizer = content.get("normalizer")
    shrink = _NORMALIZER_SHRINKS.get(normalizer["type"] if normalizer else None)
    is_byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel"
    swallows = any(entry.get("lstrip") or entry.get("rstrip") for entry in content.get("added_tokens") or [])
    if shrink is None or swallows or not is_byte_level:
        return None
    return shrink * max(map(len, reference.get_vocab()))
