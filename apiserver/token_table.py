"""What every token id stands for, built once per model: its bytes, and its text as it stands inside a JSON string.

For byte-level BPE (GPT-2's byte alphabet, as Llama 3, Qwen, SmolLM use it) a token is a byte string of its own, so text is
the concatenation of tokens. Ids whose bytes are whole UTF-8 get their JSON-escaped text; the others (parts of a
character, special tokens) are None and take the exact way through apiserver.detokenizer. Other tokenizers have no table.
"""

from typing import Any

import msgspec

from config.model_folder import ModelFolder


class TokenTable:
    """Lists by token id."""

    def __init__(self, pieces: list[bytes | None], special_ids: frozenset[int]) -> None:
        self.pieces = pieces  # None: the id stands for nothing
        self.special_ids = special_ids
        self.escaped = [
            None if piece is None or number in special_ids else _escaped_or_none(piece)
            for number, piece in enumerate(pieces)
        ]

    def __len__(self) -> int:
        return len(self.pieces)


def build_token_table(model: ModelFolder) -> TokenTable | None:
    """From tokenizer.json; None when the tokenizer is not byte-level BPE."""
    content: dict[str, Any] = msgspec.json.decode(model.tokenizer_path.read_bytes())  # Any: tokenizer.json
    if not _is_byte_level(content):
        return None
    tokens: dict[int, str] = {number: token for token, number in content["model"]["vocab"].items()}
    added = content.get("added_tokens") or []
    tokens.update({entry["id"]: entry["content"] for entry in added})
    alphabet = _byte_alphabet()
    pieces: list[bytes | None] = [None] * max(model.vocab_size, max(tokens) + 1)
    for number, token in tokens.items():
        pieces[number] = _bytes_of(token, alphabet)
    return TokenTable(pieces, frozenset(entry["id"] for entry in added if entry.get("special")))


def escape(text: str) -> bytes:
    """As it stands between the quotes of a JSON string."""
    return msgspec.json.encode(text)[1:-1]


def _is_byte_level(content: dict[str, Any]) -> bool:
    decoder = content.get("decoder") or {}
    return content.get("model", {}).get("type") == "BPE" and decoder.get("type") == "ByteLevel"


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
        return escape(piece.decode())
    except UnicodeDecodeError:
        return None
