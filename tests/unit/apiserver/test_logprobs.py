"""Logprobs in the two forms that clients read."""

from apiserver.logprobs import TokenIds, TokenTexts, chat_logprobs, completion_logprobs
from ipc.record import Scored
from tests.unit.apiserver.in_process import SMILE, NoDecoder, token_table

TEXTS = TokenTexts(token_table(), NoDecoder())
HELLO = Scored(1, 0, False, 1, -0.5, [0, 1], [-0.5, -1.5])
UNLIKELY = Scored(1, 3, False, 9, float("-inf"), [1], [-0.25])


def test_a_chat_lists_each_token_with_its_alternatives() -> None:
    [hello, unlikely] = chat_logprobs(TEXTS, [HELLO, UNLIKELY])["content"]

    assert hello == {
        "token": "Hello", "logprob": -0.5, "bytes": list(b"Hello"),
        "top_logprobs": [
            {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello")},
            {"token": " world", "logprob": -1.5, "bytes": list(b" world")},
        ],
    }  # fmt: skip
    assert (unlikely["token"], unlikely["logprob"]) == ("日本", -9999.0)


def test_a_token_that_is_not_one_of_the_likeliest_stands_before_them_in_the_place_of_the_last() -> None:
    drawn = Scored(1, 3, False, 9, -7.0, [0, 1], [-0.5, -1.5])
    likeliest_but_one = Scored(1, 1, False, 2, -1.5, [0, 1], [-0.5, -1.5])

    entries = chat_logprobs(TEXTS, [drawn, likeliest_but_one])["content"]

    assert [top["token"] for top in entries[0]["top_logprobs"]] == ["日本", "Hello"]
    assert [top["logprob"] for top in entries[1]["top_logprobs"]] == [-1.5, -0.5]


def test_the_bytes_of_tokens_add_up_to_a_character_that_none_of_them_is() -> None:
    entries = chat_logprobs(TEXTS, [Scored(1, half, False, 1, -1.0, [], []) for half in SMILE])["content"]

    assert [entry["token"] for entry in entries] == ["\ufffd", "\ufffd\ufffd"[: len(entries[1]["token"])]]
    assert bytes(entries[0]["bytes"] + entries[1]["bytes"]).decode() == "😀"


def test_a_completion_lists_columns_with_offsets_that_go_on() -> None:
    first, offset = completion_logprobs(TEXTS, [HELLO], 0)
    second, offset = completion_logprobs(TEXTS, [UNLIKELY, HELLO], offset)

    assert first == {
        "text_offset": [0], "token_logprobs": [-0.5], "tokens": ["Hello"],
        "top_logprobs": [{"Hello": -0.5, " world": -1.5}],
    }  # fmt: skip
    assert second["text_offset"] == [5, 7] and offset == 12
    assert second["top_logprobs"][0] == {"日本": -9999.0, " world": -0.25}


def test_tokens_may_be_named_by_their_ids() -> None:
    ids = TokenIds(token_table(), NoDecoder())

    [chat] = chat_logprobs(ids, [HELLO])["content"]
    completion, offset = completion_logprobs(ids, [HELLO], 3)

    assert (chat["token"], chat["bytes"]) == ("token_id:0", list(b"Hello"))
    assert [entry["token"] for entry in chat["top_logprobs"]] == ["token_id:0", "token_id:1"]
    assert bytes(chat["top_logprobs"][1]["bytes"]) == b"token_id:1", "as in vLLM, but for the token drawn"
    assert completion["tokens"] == ["token_id:0"] and offset == 3 + len("token_id:0")
    assert completion["top_logprobs"] == [{"token_id:0": -0.5, "token_id:1": -1.5}]
