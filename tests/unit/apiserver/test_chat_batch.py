"""POST /v1/chat/completions/batch: several chats, a choice for each."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.apiserver.worker_rig import EOS, WorkerRig, error_of, make_model_folder

PATH = "/v1/chat/completions/batch"
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + EOS + "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>{% endif %}{# </think> #}"
)


@pytest.fixture
def rig(tmp_path: Path) -> WorkerRig:
    return WorkerRig(make_model_folder(tmp_path / "tiny"), text="fox!")


def chats(*contents: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": content}] for content in contents]


def batch(rig: WorkerRig, *contents: str, **fields: Any) -> httpx.Response:
    return rig.post(PATH, {"messages": chats(*contents), **fields})


def test_every_chat_gets_the_choice_it_would_get_alone(rig: WorkerRig) -> None:
    alone = [rig.chat(content, max_tokens=9, seed=3, logprobs=True).json() for content in ("hello", "a fox")]
    prompts, requests = rig.engine.prompts[:], rig.engine.requests[:]

    together = batch(rig, "hello", "a fox", max_tokens=9, seed=3, logprobs=True).json()

    choices = [choice for answer in alone for choice in answer["choices"]]
    assert together["choices"] == [{**choice, "index": place} for place, choice in enumerate(choices)]
    assert together["object"] == "chat.completion" and together["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert rig.engine.prompts[2:] == prompts
    assert [request.sampling for request in rig.engine.requests[2:]] == [request.sampling for request in requests]


def test_ids_are_of_the_output_alone(rig: WorkerRig) -> None:
    answer = batch(rig, "hello", "a fox", return_token_ids=True).json()

    assert [choice["token_ids"] for choice in answer["choices"]] == [rig.ids_of("fox!")] * 2
    assert answer["prompt_token_ids"] is None, "there is one place, and two prompts"


def test_what_all_are_held_to_is_asked_for_once(rig: WorkerRig) -> None:
    response = batch(rig, "hello", "a fox", response_format={"type": "json_object"})

    assert response.status_code == 200
    assert [request.sampling.grammar is not None for request in rig.engine.requests] == [True, True]


def test_chats_that_end_within_reasoning_are_not_mixed_with_others(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "m", template=THINKING), text="Hm.</think>Yes.")
    begun = [[{"role": "assistant", "content": content}] for content in ("<think>I", "<think>I</think>Y")]

    together = rig.post(PATH, {"messages": chats("hello", "a fox")}).json()
    mixed = rig.post(PATH, {"messages": begun, "continue_final_message": True, "add_generation_prompt": False})

    assert [choice["message"]["reasoning"] for choice in together["choices"]] == ["Hm."] * 2
    assert [choice["message"]["content"] for choice in together["choices"]] == ["Yes."] * 2
    assert (mixed.status_code, error_of(mixed)["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": chats("a")[0]}, "messages[0]"),
        ({"messages": [*chats("a"), []]}, "messages[1]"),
        ({"messages": [*chats("a"), [{"role": "user", "content": [{"type": "audio"}]}]]}, "messages[1][0].content[0]"),
        ({"messages": chats("a", "b" * 2000)}, "messages"),
        ({"messages": chats(*["a"] * 2000)}, "messages"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"temperature": 3}, "temperature"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_cannot_be_served_is_named(rig: WorkerRig, fields: dict[str, Any], param: str) -> None:
    response = rig.post(PATH, {"messages": chats("hi"), **fields})

    assert response.status_code == (404 if param == "model" else 400)
    assert error_of(response)["param"] == param
