"""Any tokens, in any pieces: the streamed text is the tokenizer's decode of all, and no piece has half a character."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from apiserver.text_stream import TextStream
from apiserver.token_table import TokenTable, build_token_table
from config.model_folder import read_model_folder
from config.settings import ModelSettings

TEXT = 'Straße 🇯🇵 👩‍👩‍👧 日本語のテキスト "quoted\\path"\n\t한국어 \x07 नमस्ते  \ufffd\u2028 done'


class Vocabulary:
    """A tokenizer with its token table, as a stream sees them, and its ids sorted by what is hard about them."""

    def __init__(self, tokenizer: Tokenizer, table: TokenTable | None) -> None:
        self.tokenizer, self.table = tokenizer, table
        self.size = tokenizer.get_vocab_size()
        escaped = table.escaped if table is not None else [None] * self.size
        self.hard = [number for number in range(self.size) if escaped[number] is None]
        self.special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        self.text_ids = tokenizer.encode(TEXT, add_special_tokens=False).ids

    def ids(self) -> st.SearchStrategy[list[int]]:
        one = st.one_of(st.integers(0, self.size - 1), st.sampled_from(self.hard), st.sampled_from(self.special)).map(
            lambda number: [number]
        )
        piece = st.integers(0, len(self.text_ids)).flatmap(
            lambda start: st.integers(start, len(self.text_ids)).map(lambda end: self.text_ids[start:end])
        )
        return st.lists(st.one_of(one, piece), max_size=12).map(
            lambda parts: [number for part in parts for number in part]
        )

    def stream(self, *, skip: bool) -> TextStream:
        return TextStream(self.table, self.tokenizer, skip_special_tokens=skip)


def in_pieces(ids: list[int], cuts: list[int]) -> list[list[int]]:
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in pairwise(bounds)]


def unescaped(pieces: list[bytes]) -> str:
    for piece in pieces:
        json.loads(b'"' + piece + b'"')  # each by itself: whole characters, whole escapes
    text: str = json.loads(b'"' + b"".join(pieces) + b'"')
    return text


@pytest.fixture(scope="module")
def embedded(model_folder: Path) -> Vocabulary:
    model = read_model_folder(model_folder, ModelSettings())
    table = build_token_table(model)
    assert table is not None
    return Vocabulary(Tokenizer.from_file(str(model.tokenizer_path)), table)


def saved(tokenizer: Tokenizer, folder: Path) -> Vocabulary:
    """As a model folder would hold it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    model = read_model_folder(folder, ModelSettings())
    return Vocabulary(tokenizer, build_token_table(model))


def byte_level() -> Tokenizer:
    """All 256 bytes, some merged, and added tokens that are not in the byte alphabet, or seem to be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "ðŁ", "ðŁĺ", "Ģä", "ĠÃ", "ãģ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["  two spaces", "é", "日本", "Ġx", AddedToken("<think>", special=False)])
    tokenizer.add_special_tokens(["<|end|>", "<|é|>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece as Llama 2 and Mistral have it."""
    words = ["▁", "▁▁", "▁world", "Hello", "é", "日", ",", "\ufffd", "▁<0x41", "\n"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)}, merges=[], byte_fallback=True, unk_token="<unk>"
        )
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def byte_fallback_without_table() -> Tokenizer:
    """The same, in a shape that no table is made of."""
    tokenizer = byte_fallback()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def byte_fallback_without_strip() -> Tokenizer:
    """As Gemma has it."""
    tokenizer = byte_fallback()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def metaspace() -> Tokenizer:
    words = ["<unk>", "▁", "▁a", "b", "▁▁", "日", "▁c▁"]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "a", "##b", "don", "'", "##t", ".", "##.", "日", "n't"]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


@settings(max_examples=400, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 100), max_size=8), skip=st.booleans())
def test_streamed_text_is_the_decode_of_the_real_vocabulary(
    embedded: Vocabulary, data: st.DataObject, cuts: list[int], skip: bool
) -> None:
    ids = data.draw(embedded.ids())

    assert_exact(embedded, ids, cuts, skip)


KINDS = [byte_level, byte_fallback, byte_fallback_without_strip, byte_fallback_without_table, metaspace, word_piece]


@pytest.mark.parametrize("make", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 100), max_size=8), skip=st.booleans())
def test_streamed_text_is_the_decode_of_every_kind_of_tokenizer(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[], Tokenizer],
    data: st.DataObject,
    cuts: list[int],
    skip: bool,
) -> None:
    vocabulary = _cached(make, tmp_path_factory)
    ids = data.draw(vocabulary.ids())

    assert_exact(vocabulary, ids, cuts, skip)


def assert_exact(vocabulary: Vocabulary, ids: list[int], cuts: list[int], skip: bool) -> None:
    expected = vocabulary.tokenizer.decode(ids, skip_special_tokens=skip)
    fast, slow = vocabulary.stream(skip=skip), vocabulary.stream(skip=skip)

    escaped = [fast.feed_escaped(piece) for piece in in_pieces(ids, cuts)]
    exact = [slow.feed(piece) for piece in in_pieces(ids, cuts)]

    assert streamed_as_the_hot_path_does(vocabulary.stream(skip=skip), in_pieces(ids, cuts)) == escaped
    assert unescaped(escaped) + fast.finish() == expected
    assert "".join(exact) + slow.finish() == expected
    assert fast.num_tokens == slow.num_tokens == len(ids)


def streamed_as_the_hot_path_does(stream: TextStream, pieces: list[list[int]]) -> list[bytes]:
    """A lone token's bytes come straight out of the table where the stream says it is ready (StreamedChoice.take)."""
    written = []
    for piece in pieces:
        table = stream.ready
        ready_made = table[piece[0]] if table is not None and len(piece) == 1 else None
        if ready_made is None:
            written.append(stream.feed_escaped(piece))
        else:
            stream.num_tokens += 1
            written.append(ready_made)
    return written


def test_every_single_token_is_escaped_as_it_decodes(embedded: Vocabulary) -> None:
    assert embedded.table is not None
    whole = [number for number in range(embedded.size) if embedded.table.escaped[number] is not None]

    texts = embedded.tokenizer.decode_batch([[number] for number in whole])

    assert len(whole) > 48_000, "nearly all of the vocabulary takes the fast path"
    for number, text in zip(whole, texts, strict=True):
        assert json.loads(b'"' + (embedded.table.escaped[number] or b"") + b'"') == text


@pytest.mark.parametrize("make", KINDS)
def test_the_common_kinds_have_a_table(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    has_table = make in (byte_level, byte_fallback, byte_fallback_without_strip)

    assert (saved(make(), tmp_path).table is not None) == has_table


_vocabularies: dict[str, Vocabulary] = {}


def _cached(make: Callable[[], Tokenizer], folders: pytest.TempPathFactory) -> Vocabulary:
    name = make.__name__
    if name not in _vocabularies:
        _vocabularies[name] = saved(make(), folders.mktemp(name))
    return _vocabularies[name]
