"""What every token id stands for, built once per model: its bytes, and its text as it stands inside a JSON string.

Two kinds of tokenizers have one, for in both a token's text does not depend on its neighbours, or in a known way:

    byte-level BPE   GPT-2's byte alphabet, as Llama 3, Qwen, SmolLM use it: text is the concatenation of the tokens' bytes
    byte fallback    SentencePiece, as Llama 2, Mistral, Gemma, Phi 3 use it: tokens are whole text or single bytes

Ids that are whole UTF-8 get their JSON-escaped text; the others (parts of a character, special tokens) are None and take
the exact way through apiserver.detokenizer. Other tokenizers have no table.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from config.model_folder import ModelFolder


class ByteFallback(Struct, frozen=True):
    """What is special about the second kind."""

    byte_ids: frozenset[int]
    num_stripped: int  # leading spaces that a text loses


class TokenTable:
    """Lists by token id."""

    def __init__(
        self, pieces: list[bytes | None], special_ids: frozenset[int], byte_fallback: ByteFallback | None = None
    ) -> None:
        self.pieces = pieces  # None: the id stands for nothing
        self.special_ids = special_ids
        self.byte_fallback = byte_fallback
        exact_ids = special_ids | byte_fallback.byte_ids if byte_fallback is not None else special_ids
        self.escaped = [
            None if piece is None or number in exact_ids else _escaped_or_none(piece)
            for number, piece in enumerate(pieces)
        ]

    def __len__(self) -> int:
        return len(self.pieces)


def build_token_table(model: ModelFolder) -> TokenTable | None:
    """From tokenizer.json; None when the tokenizer is of neither kind."""
    content: dict[str, Any] = msgspec.json.decode(model.tokenizer_path.read_bytes())  # Any: tokenizer.json
    if content.get("model", {}).get("type") != "BPE":
        return None
    decoder = content.get("decoder") or {}
    tokens = _tokens(content)
    special_ids = frozenset(entry["id"] for entry in content.get("added_tokens") or [] if entry.get("special"))
    size = max(model.vocab_size, max(tokens) + 1)
    if decoder.get("type") == "ByteLevel":
        alphabet = _byte_alphabet()
        return TokenTable(_pieces(tokens, size, lambda token: _bytes_of(token, alphabet)), special_ids)
    num_stripped = _num_stripped_or_none(decoder)
    if num_stripped is None:
        return None
    byte_ids = frozenset(number for number, token in tokens.items() if _BYTE_TOKEN.fullmatch(token))
    return TokenTable(_pieces(tokens, size, _text_of), special_ids, ByteFallback(byte_ids, num_stripped))


def escape(text: str) -> bytes:
    """As it stands between the quotes of a JSON string."""
    return msgspec.json.encode(text)[1:-1]


def _tokens(content: dict[str, Any]) -> dict[int, str]:
    tokens: dict[int, str] = {number: token for token, number in content["model"]["vocab"].items()}
    tokens.update({entry["id"]: entry["content"] for entry in content.get("added_tokens") or []})
    return tokens


def _pieces(tokens: dict[int, str], size: int, bytes_of: Callable[[str], bytes]) -> list[bytes | None]:
    pieces: list[bytes | None] = [None] * size
    for number, token in tokens.items():
        pieces[number] = bytes_of(token)
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes_of(token: str, alphabet: dict[str, int]) -> bytes:
    """A token outside the alphabet (an added token, say) stands for itself, as in `tokenizers`' ByteLevel decoder."""
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:
        return token.encode()


def _escaped_or_none(piece: bytes) -> bytes | None:
    try:
        escaped = escape(piece.decode())
    except UnicodeDecodeError:
        return None
    return piece if escaped == piece else escaped  # most are: one object, not two


# The decoder of the second kind: these steps, the last one not in every model.
_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_BYTE_FALLBACK_STEPS = [_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _num_stripped_or_none(decoder: dict[str, Any]) -> int | None:
    """Leading spaces that this decoder takes away; None when it is not of the second kind."""
    steps = decoder.get("decoders") or []
    if steps[:3] != _BYTE_FALLBACK_STEPS or len(steps) > 4:
        return None
    if len(steps) == 3:
        return 0
    strip = steps[3]
    is_leading = (strip["type"], strip.get("content"), strip.get("stop")) == ("Strip", " ", 0)
    return int(strip["start"]) if is_leading else None


def _text_of(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
