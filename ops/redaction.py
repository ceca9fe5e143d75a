"""Takes secrets out of text that leaves the fleet's host (`tokenfleet bundle`).

A secret is known by its SHA-256 alone: whoever redacts needs no secret, and the digests of `--api-key-file` will do.
Every word of the text, and every part of a word between its separators, is compared; a secret with quotes, commas or
brackets in it is found only where it stands alone. What looks like a secret goes too, whoever's it is: bearer tokens,
`sk-...` keys, private keys in PEM, the user of a URL.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from config.api_keys import digest_of, read_api_keys

HIDDEN = "(hidden)"
_MAX_EDGES = 12  # of separators inside one secret: bounds the work on long words
_MIN_PEM_LINE = 16  # shorter lines of a key file are no secret by themselves, and may be words

_WORD = re.compile(r"""[^\s"'`,;<>()\[\]{}\\]+""")
_SPACED = re.compile(r"\S+")
_SEPARATOR = re.compile(r"[=:/&?|@]")
_ALIKE = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)([ +]|%20)+[^\s\"',;]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)((?:x-)?api[-_]key[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\bsk-[\w-]{6,}"), HIDDEN),
    (re.compile(r"(?<=://)[^/@\s\"']+(?=@)"), HIDDEN),
)


class Redactor:
    def __init__(self, digests: Iterable[bytes]) -> None:
        """`digests`: SHA-256 of what must not stay."""
        self._digests = frozenset(digests)

    def clean(self, text: str) -> str:
        for pattern, replacement in _ALIKE:
            text = pattern.sub(replacement, text)
        return _SPACED.sub(self._clean_spaced, text) if self._digests else text

    def _clean_spaced(self, match: re.Match[str]) -> str:
        return HIDDEN if self._is_secret(match[0]) else _WORD.sub(self._clean_word, match[0])

    def _clean_word(self, match: re.Match[str]) -> str:
        word = match[0]
        if self._is_secret(word):
            return HIDDEN
        for start, end in _parts(word):
            if self._is_secret(word[start:end]):
                return self._clean_part(word[:start]) + HIDDEN + self._clean_part(word[end:])
        return word

    def _clean_part(self, text: str) -> str:
        return _WORD.sub(self._clean_word, text)

    def _is_secret(self, word: str) -> bool:
        return sha256(word.encode(errors="surrogateescape")).digest() in self._digests


def _parts(word: str) -> Iterator[tuple[int, int]]:
    """Whatever lies between two edges of separators, longest first: `key=abc==` has `abc==` and `abc`."""
    edges = sorted({0, len(word)}.union(*(match.span() for match in _SEPARATOR.finditer(word))))
    for span in range(min(len(edges) - 1, _MAX_EDGES), 0, -1):
        yield from zip(edges, edges[span:], strict=False)


def digests_of_key_file(path: Path) -> set[bytes]:
    """Of every key in a file of --api-key-file. Raises KeyFileError."""
    return {key.digest for key in read_api_keys(path)}


def digests_of_private_key(path: Path) -> set[bytes]:
    """Of each line of a PEM file that is long enough to tell something. Raises OSError."""
    lines = (line.strip() for line in path.read_bytes().splitlines())
    return {digest_of(line) for line in lines if len(line) >= _MIN_PEM_LINE and not line.startswith(b"-----")}
