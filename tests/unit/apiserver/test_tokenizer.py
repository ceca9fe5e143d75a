"""Tokenizer: exact or not used, no thread left behind, one long text never holds the loop."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from apiserver.errors import ContextTooLong
from apiserver.probe_corpus import PROBES
from apiserver.prompt_encoding import INLINE_CHARS, INLINE_IDS, PromptEncoder
from apiserver.tokenizer import SEGMENT_CACHE_BYTES, Tokenizer, load_tokenizer
from apiserver.tokenizer_check import is_exact_in_child
from apiserver.tokenizer_library import FastLibrary, ReferenceLibrary
from config.model_folder import ModelFolderError, read_model_folder
from config.settings import ModelSettings
from tests.unit.apiserver.worker_rig import MAX_MODEL_LEN, make_model_folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(read_model_folder(folder, ModelSettings()))


@pytest.fixture(scope="module")
def real_reference(model_folder: Path) -> ReferenceLibrary:
    return ReferenceLibrary(str(model_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def real_tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(read_model_folder(model_folder, ModelSettings()))


def test_batches_are_the_references_ids_text_by_text(
    real_tokenizer: Tokenizer, real_reference: ReferenceLibrary
) -> None:
    texts = [*PROBES, "", "<|im_start|>user\nhi<|im_end|>", "x" * 5000]

    encoded = real_tokenizer.encode(texts, add_special_tokens=True)

    assert real_tokenizer.is_fast
    assert encoded == real_reference.encode(texts, add_special_tokens=True)
    assert encoded == [real_tokenizer.encode([text], add_special_tokens=True)[0] for text in texts]


def test_special_tokens_are_added_only_when_asked(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "bos")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(read_model_folder(folder, ModelSettings()))

    bare, with_bos = (tokenizer.encode(["hello"], add_special_tokens=add)[0] for add in (False, True))

    assert with_bos == array("I", [1]).tobytes() + bare


def test_a_text_beyond_the_fast_librarys_limits_takes_the_exact_way(real_tokenizer: Tokenizer) -> None:
    spaces = " " * 1_000_000

    encoded = real_tokenizer.encode([spaces], add_special_tokens=False)[0]

    assert real_tokenizer.decode(array("I", encoded).tolist(), skip_special_tokens=False) == spaces


class WrongOnEmoji(ReferenceLibrary):
    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        encoded = super().encode(texts, add_special_tokens=add_special_tokens)
        return [ids + b"\0\0\0\0" if "👍" in text else ids for text, ids in zip(texts, encoded, strict=True)]


class WrongBeforeOneToken(ReferenceLibrary):
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = super().decode(ids, skip_special_tokens=skip_special_tokens)
        return text.replace(" ", "_") if 77 in ids[1:] else text


class OtherSpelling(ReferenceLibrary):
    def id_to_token(self, id: int) -> str | None:
        return "?" if id == 299 else super().id_to_token(id)


class Crashing(ReferenceLibrary):
    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        os._exit(7)


@pytest.mark.parametrize(
    ("kind", "is_exact"),
    [
        (ReferenceLibrary, True),
        (WrongOnEmoji, False),
        (WrongBeforeOneToken, False),
        (OtherSpelling, False),
        (Crashing, False),
    ],
)
def test_one_difference_or_a_crash_disqualifies(folder: Path, kind: type[ReferenceLibrary], is_exact: bool) -> None:
    path = str(folder / "tokenizer.json")

    assert is_exact_in_child(kind(path), ReferenceLibrary(path), list(PROBES), vocab_size=300) is is_exact


def test_a_tokenizer_the_fast_library_refuses_is_served_by_the_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model_folder(tmp_path / "wordlevel")
    word_level: dict[str, object] = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None, "decoder": None, "truncation": None, "padding": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "hello": 1, "world": 2}, "unk_token": "[UNK]"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(word_level))

    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(read_model_folder(folder, ModelSettings()))

    assert not tokenizer.is_fast
    assert "tokenizers is used" in caplog.text
    assert tokenizer.encode(["hello world"], add_special_tokens=True) == [array("I", [1, 2]).tobytes()]
    assert tokenizer.max_chars_per_token is None


@pytest.mark.parametrize("content", [b'{"version": "1.0"', b'{"version": "\xff"}'])
def test_an_unreadable_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    folder = make_model_folder(tmp_path / "broken")
    (folder / "tokenizer.json").write_bytes(content)

    with pytest.raises(ModelFolderError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(read_model_folder(folder, ModelSettings()))


def test_loading_leaves_no_thread_behind(folder: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from config.settings import ModelSettings\n"
        "from config.model_folder import read_model_folder\n"
        "from apiserver.preload import preload\n"
        "loaded = preload(read_model_folder(pathlib.Path(sys.argv[1]), ModelSettings()))\n"
        "assert loaded.tokenizer.is_fast\n"
        "assert 'tokenizers' not in sys.modules, 'the reference is in every worker'\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )

    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "1"


def test_no_token_stands_for_more_characters_than_the_bound(tokenizer: Tokenizer) -> None:
    bound = tokenizer.max_chars_per_token
    assert bound is not None

    for text in (*PROBES, "<|endoftext|>" * 10, "hello hello hello"):
        encoded = tokenizer.encode([text], add_special_tokens=False)[0]
        assert len(text) <= bound * (len(encoded) // 4)


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"decoder": None}, {"lstrip": True}])
def test_where_tokens_may_swallow_text_there_is_no_bound(tmp_path: Path, change: dict[str, object]) -> None:
    folder = make_model_folder(tmp_path / "unbounded")
    content = json.loads((folder / "tokenizer.json").read_text())
    if "lstrip" in change:
        content["added_tokens"][0]["lstrip"] = True
    else:
        content.update(change)
    (folder / "tokenizer.json").write_text(json.dumps(content))

    assert load_tokenizer(read_model_folder(folder, ModelSettings())).max_chars_per_token is None


class Recorder:
    """Which thread encoded what."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.thread_ids: list[int] = []
        self.max_chars_per_token = tokenizer.max_chars_per_token

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[bytes]:
        self.thread_ids.append(threading.get_ident())
        return self._tokenizer.encode(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("texts", "is_inline"),
    [
        (["a" * INLINE_CHARS], True),
        (["a" * (INLINE_CHARS + 1)], False),
        (["a" * (INLINE_CHARS // 2 + 1)] * 2, False),
    ],
)
def test_long_texts_leave_the_loops_thread(tokenizer: Tokenizer, texts: list[str], is_inline: bool) -> None:
    recorder = Recorder(tokenizer)
    prompts = PromptEncoder(recorder, 1 << 20)  # type: ignore[arg-type]  # the part of Tokenizer that is used

    encoded = asyncio.run(prompts.encode(texts, add_special_tokens=True, bounded_field="prompt"))

    assert (recorder.thread_ids == [threading.get_ident()]) == is_inline
    assert encoded == tokenizer.encode(texts, add_special_tokens=True)


def test_a_text_that_cannot_fit_is_refused_unread(tokenizer: Tokenizer) -> None:
    recorder = Recorder(tokenizer)
    prompts = PromptEncoder(recorder, MAX_MODEL_LEN)  # type: ignore[arg-type]  # the part of Tokenizer that is used
    text = "x" * 10_000_000

    with pytest.raises(
        ContextTooLong, match=rf"context length is {MAX_MODEL_LEN} tokens.* at least \d+ tokens"
    ) as error:
        asyncio.run(prompts.encode([text], add_special_tokens=True, bounded_field="messages"))

    assert error.value.param == "messages"
    assert recorder.thread_ids == []


@pytest.mark.parametrize("is_fast", [True, False])
def test_the_loop_turns_while_a_long_text_is_encoded(
    real_tokenizer: Tokenizer, real_reference: ReferenceLibrary, is_fast: bool
) -> None:
    tokenizer = real_tokenizer if is_fast else Tokenizer(real_reference, None)
    text = "The quick brown fox 12345 jumps over the lazy dog.\n" * (40_000 if is_fast else 4_000)
    prompts = PromptEncoder(tokenizer, 1 << 30)

    async def measure() -> tuple[float, float]:
        """Seconds until encoded, and of the loop's longest turn meanwhile."""
        longest = 0.0
        started = time.monotonic()
        task = asyncio.create_task(prompts.encode([text], add_special_tokens=False, bounded_field=None))
        while not task.done():
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        return time.monotonic() - started, longest

    total_s, longest_s = asyncio.run(measure())

    # Had the GIL been held, one turn would have been nearly all of it; a busy machine may take a slice out of some turn.
    assert longest_s < total_s * 0.6, f"one turn of {longest_s:.3f} s in {total_s:.3f} s"


def test_long_detokenization_leaves_the_loops_thread(tokenizer: Tokenizer) -> None:
    prompts = PromptEncoder(tokenizer, MAX_MODEL_LEN)
    ids = array("I", tokenizer.encode(["hello world"], add_special_tokens=False)[0]).tolist()

    short = asyncio.run(prompts.decode(ids))
    long = asyncio.run(prompts.decode(ids * INLINE_IDS))

    assert short == "hello world"
    assert long == short * INLINE_IDS


def test_fast_and_reference_libraries_agree_on_the_real_model(
    model_folder: Path, real_tokenizer: Tokenizer, real_reference: ReferenceLibrary
) -> None:
    assert real_tokenizer.is_fast
    fast = FastLibrary((model_folder / "tokenizer.json").read_text(), real_reference, SEGMENT_CACHE_BYTES)
    texts = [f"{probe}<|im_end|>\n{probe}" for probe in PROBES]

    for special in (False, True):
        encoded = fast.encode(texts, add_special_tokens=special)
        assert encoded == real_reference.encode(texts, add_special_tokens=special)
        for ids in encoded:
            numbers = array("I", ids).tolist()
            assert fast.decode(numbers, skip_special_tokens=special) == real_reference.decode(
                numbers, skip_special_tokens=special
            )
