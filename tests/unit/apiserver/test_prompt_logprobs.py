"""What answers say of their prompts: logprobs in vLLM's form, and echoes."""

from pathlib import Path
from typing import Any

import pytest

from apiserver.collected_details import put_prompt_score
from ipc.messages import NO_LOGPROBS
from ipc.record import Scored
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, events_of, make_model_folder, scored

PROMPT = "hello wörld"
TEXT = "fox!"


@pytest.fixture
def rig(tmp_path: Path) -> WorkerRig:
    return WorkerRig(make_model_folder(tmp_path), text=TEXT)


def test_the_first_token_has_no_logprob_and_the_others_themselves_and_the_likeliest(rig: WorkerRig) -> None:
    chat = rig.chat(PROMPT, prompt_logprobs=2).json()
    completion = rig.complete([PROMPT, "hi"], prompt_logprobs=2, n=2).json()

    first, second, *_ = chat["prompt_logprobs"]
    token = rig.engine.prompts[0][1]
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"] and first is None
    assert second[str(token)] == {"logprob": -float(token), "rank": 3, "decoded_token": rig.text_of([token])}
    assert second["70"] == {"logprob": -0.25, "rank": 1, "decoded_token": rig.text_of([70])} and len(second) == 3
    lengths = [len(choice["prompt_logprobs"]) for choice in completion["choices"]]
    assert lengths == [len(rig.ids_of(PROMPT))] * 2 + [len(rig.ids_of("hi"))] * 2
    asked = [request.sampling.num_prompt_logprobs for request in rig.engine.requests]
    assert asked == [2, 2, NO_LOGPROBS, 2, NO_LOGPROBS], "one choice of a prompt computes them for all"


@pytest.mark.parametrize("mode", ["tokens", "text"])
def test_generation_from_ids_tells_the_same_of_its_prompt(rig: WorkerRig, mode: str) -> None:
    completion = rig.complete(PROMPT, prompt_logprobs=2).json()
    sampling = {"prompt_logprobs": 2, "logprobs": 1, "n": 2}

    made = rig.post("/inference/v1/generate",
        {"token_ids": rig.ids_of(PROMPT), "sampling_params": sampling, "output_mode": mode}).json()  # fmt: skip

    assert made["prompt_logprobs"] == completion["choices"][0]["prompt_logprobs"]
    assert [choice["token_ids"] for choice in made["choices"]] == [rig.ids_of(TEXT)] * 2
    assert len(made["choices"][1]["logprobs"]["content"]) == len(rig.ids_of(TEXT))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_an_echo_stands_before_the_output(rig: WorkerRig, prompt: str | None, stream: bool) -> None:
    response = rig.complete(prompt or rig.ids_of(PROMPT), echo=True, n=2, stream=stream)

    texts = ["", ""]
    for body in events_of(response) if stream else [response.json()]:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [PROMPT + TEXT] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 16])
def test_an_echo_with_logprobs_scores_prompt_and_output_in_one(rig: WorkerRig, stream: bool, max_tokens: int) -> None:
    asked: dict[str, Any] = {"max_tokens": max_tokens, "stream": stream}
    response = rig.complete(PROMPT, echo=True, logprobs=1, prompt_logprobs=None if stream or max_tokens else 2, **asked)

    bodies = events_of(response) if stream else [response.json()]
    columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for body in bodies:
        for name, column in columns.items():
            column += (body["choices"][0]["logprobs"] or {}).get(name, [])
    ids = rig.ids_of(PROMPT) + (rig.ids_of(TEXT) if max_tokens else [])
    assert "".join(body["choices"][0]["text"] for body in bodies) == PROMPT + (TEXT if max_tokens else "")
    assert columns["tokens"] == [rig.text_of([number]) for number in ids]
    assert columns["token_logprobs"] == [None, *(-float(number) for number in ids[1:])]
    assert columns["top_logprobs"][0] is None and columns["text_offset"][0] == 0
    assert all(rig.text_of([70]) in entry and len(entry) <= 3 for entry in columns["top_logprobs"][1:])
    if not stream:
        assert len(bodies[0]["choices"][0]["prompt_logprobs"]) == len(rig.ids_of(PROMPT)), "as in vLLM"
    assert bodies[-1]["choices"][0]["finish_reason"] == ("stop" if max_tokens else "length")


def test_an_echo_with_token_ids_is_ids_alone_as_in_vllm(rig: WorkerRig) -> None:
    [choice] = rig.complete(PROMPT, echo=True, return_token_ids=True).json()["choices"]

    assert (choice["text"], choice["prompt_token_ids"], choice["token_ids"]) == (
        TEXT, rig.ids_of(PROMPT), rig.ids_of(TEXT),
    )  # fmt: skip


def test_a_cut_prompt_is_echoed_as_it_was_cut(rig: WorkerRig) -> None:
    [choice] = rig.complete("hello world", echo=True, truncate_prompt_tokens=2).json()["choices"]

    assert choice["text"] == rig.text_of(rig.ids_of("hello world")[-2:]) + TEXT


def test_scores_that_come_again_replace_what_was_lost() -> None:
    scores: list[Scored] = []

    for place in (1, 2, 3, 1, 2):
        put_prompt_score(scores, scored(1, 60 + place, place))

    assert [entry.token for entry in scores] == [61, 62]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -2}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_told_is_a_400(rig: WorkerRig, fields: dict[str, Any], param: str) -> None:
    response = rig.complete(**fields)

    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert rig.complete(prompt_logprobs=0, stream=True).status_code == 200, "as in vLLM it asks for nothing"
