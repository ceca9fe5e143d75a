"""Whether fastokens does exactly what tokenizers does with one model's tokenizer.

Texts: a corpus of scripts, code and white space, alone and around the model's added tokens, cold and out of the cache.
Ids: every id of the vocabulary, by itself as a word and in a row with others far from it, with and without special tokens.

The check runs in a forked child, so that whatever the libraries start or break stays there: the zygote must not have a
thread when it forks the workers, and need not carry the reference.
"""

import os
from array import array
from collections.abc import Iterator
from typing import Any

from apiserver.probe_corpus import PROBES
from apiserver.tokenizer_library import TokenizerLibrary

MAX_PROBED_ADDED_TOKENS = 64
ROW = 16  # ids that are decoded together


def is_exact_in_child(
    library: TokenizerLibrary, reference: TokenizerLibrary, probes: list[str], vocab_size: int
) -> bool:
    """Whether both agree on every probe and on every id below `vocab_size`. A crash of the child is a no."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            encodes = _encodes_exactly(library, reference, probes)
            code = 0 if encodes and _decodes_exactly(library, reference, probes, vocab_size) else 1
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status == 0


def probes_of(content: dict[str, Any]) -> list[str]:  # Any: tokenizer.json
    """The corpus, the corpus between the model's added tokens, and those inside text."""
    added = [entry["content"] for entry in content.get("added_tokens") or []][:MAX_PROBED_ADDED_TOKENS]
    between = [f"{token}{probe}{token}" for token in added[:3] for probe in PROBES]
    return [*PROBES, *between, "".join(added), " ".join(added), *(f"a {token}b\n{token} {token}" for token in added)]


def _encodes_exactly(library: TokenizerLibrary, reference: TokenizerLibrary, probes: list[str]) -> bool:
    for special in (False, True):
        expected = reference.encode(probes, add_special_tokens=special)
        if library.encode(probes, add_special_tokens=special) != expected:
            return False
        again = [library.encode([probe], add_special_tokens=special)[0] for probe in probes]
        if again != expected:
            return False
    return True


def _decodes_exactly(
    library: TokenizerLibrary, reference: TokenizerLibrary, probes: list[str], vocab_size: int
) -> bool:
    for number in range(vocab_size):
        token = reference.id_to_token(number)
        if library.id_to_token(number) != token:
            return False
        if token is not None and library.token_to_id(token) != reference.token_to_id(token):
            return False
    return all(
        library.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
        for ids in _rows(reference, probes, vocab_size)
        for skip in (False, True)
    )


def _rows(reference: TokenizerLibrary, probes: list[str], vocab_size: int) -> Iterator[list[int]]:
    """The probes' own ids, then every id of the vocabulary once."""
    for encoded in reference.encode(probes, add_special_tokens=True):
        yield array("I", encoded).tolist()
    stride = -(-vocab_size // ROW)
    for start in range(stride):
        yield list(range(start, vocab_size, stride))
