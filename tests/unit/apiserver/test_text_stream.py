"""Text of one choice: the fast path, stop strings over it, what counts as a token, what the end adds."""

import json

import pytest

from apiserver.detokenizer import WindowDetokenizer
from apiserver.text_stream import TextStream
from tests.unit.apiserver.in_process import SMILE, SPECIAL, NoDecoder, token_table

HELLO, WORLD, COMMA, JAPAN, QUOTE = range(5)
ST, OP = 8, 9  # together "STOP!"


def stream(*stop: str, include_stop: bool = False, min_tokens: int = 0, skip_special: bool = True) -> TextStream:
    return TextStream(
        token_table(),
        NoDecoder(),
        stop=stop,
        include_stop=include_stop,
        min_tokens=min_tokens,
        skip_special_tokens=skip_special,
    )


def test_text_is_ready_for_a_json_string() -> None:
    text = stream().feed_escaped([HELLO, JAPAN, QUOTE])

    assert json.loads(b'"' + text + b'"') == 'Hello日本"quote"\n'


def test_half_a_character_waits_for_its_other_half() -> None:
    text = stream()

    pieces = [text.feed_escaped([token]) for token in (HELLO, SMILE[0], SMILE[1], WORLD)]

    assert [piece.decode() for piece in pieces] == ["Hello", "", "😀", " world"]


def test_a_token_behind_half_a_character_shows_it_as_broken() -> None:
    text = stream()

    assert text.feed_escaped([SMILE[0]]) == b""
    assert text.feed_escaped([HELLO]).decode() == "\ufffdHello"
    assert text.feed_escaped([SMILE[0]]) == b""
    assert text.finish() == "\ufffd"


@pytest.mark.parametrize(("skip", "expected"), [(True, "Hello"), (False, "Hello<end>")])
def test_special_tokens_are_skipped_unless_asked_for(skip: bool, expected: str) -> None:
    assert stream(skip_special=skip).feed_escaped([HELLO, SPECIAL]).decode() == expected


def test_a_stop_string_over_two_tokens_ends_text_and_count() -> None:
    text = stream("STOP")

    pieces = [text.feed_escaped([token]) for token in (HELLO, ST, OP, WORLD)]

    assert pieces == [b"Hello", b"", b"", b""]
    assert (text.matched_stop, text.num_tokens) == ("STOP", 3)


def test_tokens_that_come_together_stop_where_they_would_have_one_by_one() -> None:
    together = stream("STOP", " world").feed_escaped([HELLO, ST, OP, WORLD])

    assert together == b"Hello"


def test_an_included_stop_string_is_the_last_of_the_text() -> None:
    text = stream("STOP", include_stop=True)

    assert text.feed_escaped([HELLO, ST, OP, WORLD]) == b"HelloSTOP"


def test_what_was_held_back_comes_at_the_end() -> None:
    text = stream("STOP")

    assert text.feed([HELLO, ST]) == "Hello"
    assert text.finish() == "ST"
    assert text.matched_stop is None


def test_a_broken_character_at_the_end_may_complete_a_stop_string() -> None:
    text = stream("world\ufffd")

    assert text.feed([WORLD, SMILE[0]]) == " "
    assert text.finish() == ""
    assert text.matched_stop == "world\ufffd"


@pytest.mark.parametrize(("min_tokens", "expected"), [(1, "Hello"), (2, "Hello"), (3, "HelloSTOP!")])
def test_a_stop_string_counts_from_the_token_behind_min_tokens(min_tokens: int, expected: str) -> None:
    text = stream("STOP", min_tokens=min_tokens)

    assert text.feed([HELLO, ST, OP]) + text.finish() == expected


def test_the_stop_token_has_text_only_where_the_client_wants_it() -> None:
    plain, including = stream(), stream(include_stop=True)

    assert plain.feed([HELLO]) + plain.finish(COMMA) == "Hello"
    assert including.feed([HELLO]) + including.finish(COMMA) == "Hello,"


class ByteRunDecoder:
    """Decodes as ByteFallback does, over the ids of their own bytes; ids from 1000 on are the special `<s>`."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        data = bytes(number for number in ids if number < 256)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(data)

    def id_to_token(self, id: int) -> str | None:
        return "<s>" if id >= 1000 else chr(id) if id < 128 else f"<0x{id:02X}>"


def test_a_token_without_text_does_not_settle_the_bytes_before_it() -> None:
    text = WindowDetokenizer(ByteRunDecoder(), skip_special_tokens=True)  # type: ignore[arg-type]  # list for Sequence

    first = text.feed([*"日".encode(), 1000])
    rest = text.feed([0xE6]) + text.finish()

    assert first + rest == "\ufffd" * 4, "one run that is not UTF-8 as a whole"
