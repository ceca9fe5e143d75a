"""The tokenizer inside a GGUF file, as the content of a tokenizer.json.

Byte-level BPE only (`tokenizer.ggml.model` gpt2), with the pre-tokenizers of the supported model families. The regular
expressions are the families' own, as their tokenizer.json files have them. transformers' GGUF import forgets the
pre-tokenizer and splits digits differently; this does not.
"""

from collections.abc import Callable
from typing import Any

from config.model_folder import ModelFolderError

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(get: Callable[[str], Any], file_name: str) -> dict[str, Any]:  # Any: JSON
    """`get` reads a metadata field or None. Raises ModelFolderError for a kind of tokenizer that is not known here."""
    kind, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre") or "default"
    if kind != "gpt2":
        raise ModelFolderError(
            f"{file_name} has a tokenizer of kind '{kind}'; only byte-level BPE is read from GGUF: "
            "serve the model's Hugging Face folder instead"
        )
    tokens: list[str] = get("tokenizer.ggml.tokens")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, get("tokenizer.ggml.token_type") or []),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _pre_tokenizer(pre, file_name),
        "post_processor": _post_processor(tokens, get),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in get("tokenizer.ggml.merges")],
        },
    }


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "content": tokens[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for number, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _pre_tokenizer(pre: str, file_name: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if pre in ("default", "gpt-2"):
        return byte_level
    if pre == "smollm":
        return _sequence({"type": "Digits", "individual_digits": True}, byte_level)
    patterns = {"llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}
    if pre in patterns:
        split = {"type": "Split", "pattern": {"Regex": patterns[pre]}, "behavior": "Isolated", "invert": False}
        return _sequence(split, {**byte_level, "use_regex": False})
    raise ModelFolderError(
        f"{file_name} has the pre-tokenizer '{pre}', which is not known here: serve the model's Hugging Face folder"
    )


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _post_processor(tokens: list[str], get: Callable[[str], Any]) -> dict[str, Any]:
    """Puts the beginning-of-sequence token in front where the model wants it."""
    if not get("tokenizer.ggml.add_bos_token"):
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    number = get("tokenizer.ggml.bos_token_id")
    bos = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    special = {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {tokens[number]: special},
    }
