"""Bad words on their way to the engine, and what is asked of single tokens."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder


@pytest.fixture
def rig(tmp_path: Path) -> WorkerRig:
    return WorkerRig(make_model_folder(tmp_path))


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_a_word_is_banned_at_the_start_and_behind_a_space_where_that_is_another_token(rig: WorkerRig, ask: str) -> None:
    getattr(rig, ask)("hi", bad_words=["x", " x", "the", "qz"])

    def run(text: str) -> tuple[int, ...]:
        return tuple(rig.ids_of(text))

    forms = [(run(word), run(" " + word)) for word in ("x", "x", "the", "qz")]
    expected = [
        form
        for bare, spaced in forms
        for form in ((bare, spaced) if spaced[0] != bare[0] and len(spaced) == len(bare) else (bare,))
    ]
    assert list(rig.engine.requests[0].sampling.bad_words) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["ok", "  "]}, "bad_words"),
        ({"bad_words": ["x" * 1025]}, "bad_words"),
        ({"bad_words": [f"{number:x}" for number in range(200)]}, "bad_words"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [9999], "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": list(range(129)), "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [1], "logprobs": 1, "echo": True, "max_tokens": 0}, "logprob_token_ids"),
        ({"best_of": 3, "n": 2}, "best_of"),
    ],
)
def test_what_cannot_be_asked_is_a_400_that_names_it(rig: WorkerRig, fields: dict[str, Any], param: str) -> None:
    response = rig.complete("hi", **fields)

    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_tokens_may_be_named_whose_logprobs_are_wanted(rig: WorkerRig) -> None:
    rig.chat("hi", logprobs=True, logprob_token_ids=[5, 4, 5])
    rig.complete("hi", logprobs=2, logprob_token_ids=[7], best_of=1, spaces_between_special_tokens=False)

    asked = [(request.sampling.num_logprobs, request.sampling.logprob_token_ids) for request in rig.engine.requests]
    assert asked == [(0, (5, 4)), (0, (7,))]
