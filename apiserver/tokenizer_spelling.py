"""The same tokenizer.json with its pre-tokenizer spelled the way that fastokens runs fast.

`ByteLevel` with `use_regex` is GPT-2's pattern as a `Split`, then the bytes (in `tokenizers`: pre_tokenizers/byte_level.rs).
fastokens compiles the pattern of a `Split` to machine code, that of `ByteLevel` it interprets: 1000 tokens of prose take 71
instead of 288 us. GPT-2, SmolLM2, StarCoder and OPT are spelled so; Llama's and Qwen's files are fast as they are. As with
those, a thread that encodes then has a table of 18 MB for the words it has seen; an empty step behind `ByteLevel` would avoid
it, and make words that are new cost twice as much.
"""

from typing import Any

_CONTRACTIONS, _LETTERS, _OTHERS, _SPACES = (
    r"'(?:[sdmt]|ll|ve|re)",
    r" ?\p{L}+",
    r" ?[^\s\p{L}\p{N}]+",
    r"\s+(?!\S)|\s+",
)
GPT2_PATTERN = rf"{_CONTRACTIONS}|{_LETTERS}| ?\p{{N}}+|{_OTHERS}|{_SPACES}"

# `Digits`, one by one, in front: no piece of GPT-2's goes over a digit, and white space before one ends its piece.
DIGITS_THEN_GPT2_PATTERN = rf"\p{{N}}|{_CONTRACTIONS}|{_LETTERS}|{_OTHERS}|\s+(?=\p{{N}})|{_SPACES}"

UNLIKE = "\u180e\U00016ff4\U00016ff5\U00016ff6" + "".join(map(chr, range(0x11DE0, 0x11DEA)))
"""All characters that the compiled pattern takes for something else: a space that is none any more, and digits and letters
of a Unicode newer than the reference's. Of fastokens 0.3.5 and tokenizers 0.23.3; a test compares every character."""


def respelled(content: dict[str, Any]) -> dict[str, Any] | None:  # Any: tokenizer.json
    """None: nothing to gain. Gives the same ids for every text without a character of `UNLIKE`."""
    pre_tokenizer = content.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not steps or not _is_gpt2(steps[-1]):
        return None
    if len(steps) == 2 and steps[0] == {"type": "Digits", "individual_digits": True}:
        before: list[Any] = []
        pattern = DIGITS_THEN_GPT2_PATTERN
    else:
        before, pattern = steps[:-1], GPT2_PATTERN
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = [*before, split, {**steps[-1], "use_regex": False}]
    return {**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def _is_gpt2(step: dict[str, Any]) -> bool:
    """A space put in front of every piece would come after the split."""
    return step.get("type") == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space", True)
