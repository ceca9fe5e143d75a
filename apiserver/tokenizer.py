"""Text becomes token ids: by `fastokens` where it is exact, by `tokenizers` where it is not.

fastokens is a drop-in in Rust, 20 to 200 times faster, with a cache of segments seen before. Whether it is exact for this
model is checked when the model is loaded, on a corpus of scripts, code, white space and the model's special tokens; any
difference and `tokenizers` is used instead, with a log line. The check runs in a forked child: encoding starts threads, and
the zygote that loads this must not have any when it forks the workers.
"""

import logging
import os
from array import array
from typing import Any, Protocol

import msgspec
from fastokens import Tokenizer as FastTokenizer
from tokenizers import Tokenizer as ReferenceTokenizer

from apiserver.probe_corpus import PROBES
from config.model_folder import ModelFolder, ModelFolderError

logger = logging.getLogger(__name__)

SEGMENT_CACHE_BYTES = 32 << 20


class _Encoder(Protocol):
    def encode(self, input: str, /, *, add_special_tokens: bool) -> Any: ...  # Any: either library's Encoding


class Tokenizer:
    """One model's tokenizer in one process."""

    def __init__(self, encoder: _Encoder, reference: ReferenceTokenizer) -> None:
        self._encoder = encoder
        self._reference = reference

    @property
    def is_fast(self) -> bool:
        return self._encoder is not self._reference

    @property
    def decoder(self) -> ReferenceTokenizer:
        """For detokenizers that need the library's own decode."""
        return self._reference

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        """Token ids as little-endian u32, as they travel to the engine."""
        return array("I", self._encoder.encode(text, add_special_tokens=add_special_tokens).ids).tobytes()

    def encode_ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return self._reference.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_of(self, token_id: int) -> str | None:
        return self._reference.id_to_token(token_id)


def load_tokenizer(model: ModelFolder) -> Tokenizer:
    """Raises ModelFolderError. Starts no thread in this process."""
    path = str(model.tokenizer_path)
    try:
        reference = ReferenceTokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exceptions
        raise ModelFolderError(f"{path} cannot be read: {error}") from None
    reference.no_truncation()
    reference.no_padding()
    try:
        fast = FastTokenizer.from_file(path)
    except Exception as error:  # what fastokens does not know it refuses
        logger.warning("fastokens cannot read this tokenizer, tokenizers is used", extra={"reason": str(error)})
        return Tokenizer(reference, reference)
    if not _is_exact_in_child(fast, reference, _probes(model)):
        logger.warning("fastokens differs from tokenizers on this model, tokenizers is used")
        return Tokenizer(reference, reference)
    fast.enable_segment_cache(SEGMENT_CACHE_BYTES)
    return Tokenizer(fast, reference)


def _probes(model: ModelFolder) -> list[str]:
    """The corpus, and the model's added tokens inside text."""
    content = msgspec.json.decode(model.tokenizer_path.read_bytes())
    added = [entry["content"] for entry in content.get("added_tokens") or []][:64]
    return [*PROBES, "".join(added), " ".join(added), *(f"a {token}b\n{token} {token}" for token in added)]


def _is_exact_in_child(fast: FastTokenizer, reference: ReferenceTokenizer, probes: list[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if _is_exact(fast, reference, probes) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status == 0


def _is_exact(fast: FastTokenizer, reference: ReferenceTokenizer, probes: list[str]) -> bool:
    return all(
        fast.encode(probe, add_special_tokens=special).ids == reference.encode(probe, add_special_tokens=special).ids
        for probe in probes
        for special in (False, True)
    )
