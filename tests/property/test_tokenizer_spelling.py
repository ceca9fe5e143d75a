"""A pre-tokenizer spelled for fastokens gives the ids of the reference: for every character, and for any text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apiserver.tokenizer_library import FastLibrary, ReferenceLibrary
from apiserver.tokenizer_spelling import UNLIKE, respelled

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"String": "_"}, "behavior": "Isolated", "invert": False}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


SPELLINGS = {  # of models
    "SmolLM2": sequence(DIGITS, BYTE_LEVEL),
    "GPT-2": BYTE_LEVEL,
    "more in front": sequence(SPLIT, DIGITS, BYTE_LEVEL),
}
BATCH = 20_000
PLANES_WITH_TEXT = (*range(0x40000), *range(0xE0000, 0xE0200))  # the others are private or empty
SURROGATES = range(0xD800, 0xE000)


class Forbidden(ReferenceLibrary):
    """fastokens gets no help."""

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        raise AssertionError("the reference was asked")


class Pair:
    """Both libraries over one pre-tokenizer."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(content))
        faster = respelled(content)
        assert faster is not None
        self.reference = ReferenceLibrary(str(path))
        self.faster = json.dumps(faster)
        self.fast = FastLibrary(self.faster, Forbidden(""), cache_bytes=1 << 20)

    def differing(self, texts: list[str]) -> Iterator[str]:
        expected = self.reference.encode(texts, add_special_tokens=False)
        encoded = self.fast.encode(texts, add_special_tokens=False)
        return (text for text, ids, others in zip(texts, encoded, expected, strict=True) if ids != others)


def telling(c: str) -> str:
    """A text that is cut in other places where `c` is taken for something else."""
    return f"{c}x{c}  {c}1 {c}{c}'s"


@pytest.fixture(scope="module", params=SPELLINGS)
def pair(request: pytest.FixtureRequest, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    content = json.loads((model_folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = SPELLINGS[request.param]
    vocabulary = content["model"]["vocab"]
    for code in range(0x144):  # the model's own lacks some bytes, of which fastokens complains
        vocabulary.setdefault(chr(code), len(vocabulary))
    return Pair(tmp_path_factory.mktemp("spelling"), content)


def test_every_character_but_the_listed_is_taken_for_the_same(pair: Pair) -> None:
    characters = [chr(code) for code in PLANES_WITH_TEXT if code not in SURROGATES]
    unlike = set()
    for start in range(0, len(characters), BATCH):
        texts = [telling(c) for c in characters[start : start + BATCH]]
        unlike |= {text[0] for text in pair.differing(texts)}

    assert "\u180e" in unlike
    assert unlike <= set(UNLIKE)


PIECES = st.sampled_from(
    ["a", "Z", "é", "ß", "中", "👍🏽", "e\u0301", "'s", "'S", "'ll", "'", "1", "42", "½", "٣", "Ⅳ", " ", "  ", "\t", "\n",
     "\r\n", "\u00a0", "\u2003", "\u0085", "_", "-", "!?", "...", "\u200b", "<|im_end|>", "hello", " world"]
)  # fmt: skip


@given(pieces=st.lists(PIECES, max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_same_ids(pair: Pair, pieces: list[str]) -> None:
    assert not list(pair.differing(["".join(pieces)]))


@given(pieces=st.lists(PIECES, min_size=20, max_size=60), run=PIECES, at=st.integers(0, 40_000))
@settings(max_examples=40, deadline=None)
def test_a_text_that_is_cut_for_threads_has_the_same_ids(pair: Pair, pieces: list[str], run: str, at: int) -> None:
    text = "".join(pieces) * (40_000 // len("".join(pieces)))

    assert not list(pair.differing([text, text[:at] + run * 2000 + text[at:], text[: at // 2]]))


def test_a_text_with_a_character_that_is_taken_for_something_else_goes_to_the_reference(pair: Pair) -> None:
    fast = FastLibrary(pair.faster, pair.reference, cache_bytes=1 << 20, unlike=UNLIKE)
    texts = [telling(character) for character in UNLIKE]

    assert fast.encode(texts, add_special_tokens=False) == pair.reference.encode(texts, add_special_tokens=False)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {**BYTE_LEVEL, "use_regex": False},
        {**BYTE_LEVEL, "add_prefix_space": True},
        sequence(SPLIT, {**BYTE_LEVEL, "use_regex": False}),
        sequence(BYTE_LEVEL, DIGITS),
        sequence(),
        {"type": "Whitespace"},
    ],
)
def test_what_is_fast_already_or_something_else_stays_as_it_is(pre_tokenizer: dict[str, Any] | None) -> None:
    assert respelled({"pre_tokenizer": pre_tokenizer}) is None
