"""What answers say beside their text: token ids, running usage, and how many tokens share an event."""

from pathlib import Path
from typing import Any

import pytest

from apiserver.answer_details import AnswerDetails
from apiserver.detailed_choice import detailed_choice_of
from ipc.record import FinishCode
from tests.unit.apiserver.in_process import SMILE, SPECIAL, finish
from tests.unit.apiserver.stream_rig import COMMA, HELLO, JAPAN, WORLD, Server, events, request, run
from tests.unit.apiserver.worker_rig import CHATML, TEXT, WorkerRig, events_of, make_model_folder

THINKING = CHATML + "{% if add_generation_prompt %}{{ '<think>\\n' }}{# closed by </think> #}{% endif %}"
BOTH = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture
def rig(tmp_path: Path) -> WorkerRig:
    return WorkerRig(make_model_folder(tmp_path), text=TEXT)


def ids_in(events: list[dict[str, Any]]) -> list[int]:
    return [number for event in events for choice in event["choices"] for number in choice.get("token_ids") or []]


def test_a_body_has_the_ids_of_prompt_and_output_where_vllm_has_them(rig: WorkerRig) -> None:
    chat = rig.chat(return_token_ids=True).json()
    completion = rig.complete(["hi", "ho"], return_token_ids=True, max_tokens=64).json()
    plain = rig.complete().json()["choices"][0]

    ids = rig.ids_of(TEXT)
    assert (chat["prompt_token_ids"], chat["choices"][0]["token_ids"]) == (rig.engine.prompts[0], ids)
    assert [choice["prompt_token_ids"] for choice in completion["choices"]] == [rig.ids_of("hi"), rig.ids_of("ho")]
    assert [choice["token_ids"] for choice in completion["choices"]] == [ids, ids]
    assert plain["token_ids"] is plain["prompt_token_ids"] is None


@pytest.mark.parametrize("stream_interval", [1, 3, 100])
def test_streamed_ids_add_up_and_so_does_the_text(rig: WorkerRig, stream_interval: int) -> None:
    asked: dict[str, Any] = {
        "max_tokens": 64,
        "stream": True,
        "return_token_ids": True,
        "stream_interval": stream_interval,
    }
    chat, completion = events_of(rig.chat(**asked)), events_of(rig.complete(**asked))

    assert ids_in(chat) == ids_in(completion) == rig.ids_of(TEXT)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in chat) == TEXT
    assert "".join(event["choices"][0]["text"] for event in completion) == TEXT
    assert chat[0]["prompt_token_ids"] == rig.engine.prompts[0]
    assert completion[0]["choices"][0]["prompt_token_ids"] == rig.ids_of("hi")
    assert not any("prompt_token_ids" in event for event in chat[1:])
    assert not any("prompt_token_ids" in event["choices"][0] for event in completion[1:])


@pytest.mark.parametrize("stream_interval", [1, 3])
def test_the_first_event_has_one_token_and_the_next_ones_an_interval(stream_interval: int) -> None:
    details = AnswerDetails(has_token_ids=True, stream_interval=stream_interval)

    asked = request(details=details)

    async def client() -> None:
        server = Server(asked, detailed_choice_of(asked, details, opens_with_prompt_ids=False))
        connection = await server.connect()
        for token in (HELLO, COMMA, *SMILE, WORLD, JAPAN):
            server.worker.step([1], [token])
            await connection.settle()
        server.worker.step(finishes=[finish(1, FinishCode.STOP, stop_token_id=SPECIAL)])
        await connection.settle()

        choices = [event["choices"][0] for event in events(connection.body)[1:-1]]
        ids = [choice["token_ids"] for choice in choices]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello,😀 world日本"
        if stream_interval == 1:
            assert ids == [[HELLO], [COMMA], [SMILE[0]], [SMILE[1]], [WORLD], [JAPAN], [SPECIAL]]
        else:
            assert ids == [[HELLO], [COMMA, *SMILE], [WORLD, JAPAN, SPECIAL], []]

    run(client)


def test_what_gives_no_event_yet_writes_nothing() -> None:
    """An empty chunk would be the end of the body: here between the halves of a character, which nothing tells of."""
    details = AnswerDetails(has_running_usage=True)
    asked = request(details=details)

    async def client() -> None:
        server = Server(asked, detailed_choice_of(asked, details, opens_with_prompt_ids=False))
        connection = await server.connect()
        for token in (HELLO, *SMILE, WORLD):
            server.worker.step([1], [token])
            await connection.settle()
        server.worker.step(finishes=[finish(1)])
        await connection.settle()

        *said, done = events(connection.body)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in said) == "Hello😀 world"
        assert done == "[DONE]"
        assert connection.received.count(b"\r\n0\r\n\r\n") == 1

    run(client)


def test_running_usage_stands_on_every_event_and_grows(rig: WorkerRig) -> None:
    chat = events_of(rig.chat(stream=True, stream_options=BOTH))
    completion = events_of(rig.complete(stream=True, stream_options=BOTH, max_tokens=64))

    for stream in (chat, completion):
        counts = [event["usage"]["completion_tokens"] for event in stream]
        assert counts == sorted(counts) and counts[-1] == counts[-2] == len(rig.ids_of(TEXT))
        assert all(
            event["usage"]["total_tokens"] == event["usage"]["prompt_tokens"] + event["usage"]["completion_tokens"]
            for event in stream
        )
    assert chat[0]["usage"]["completion_tokens"] == 0


def test_as_in_vllm_running_usage_alone_asks_for_nothing(rig: WorkerRig) -> None:
    events = events_of(rig.chat(stream=True, stream_options={"continuous_usage_stats": True}))

    assert not any("usage" in event for event in events)


@pytest.mark.parametrize("stream", [False, True])
def test_ids_end_with_the_token_that_completes_a_stop_string(rig: WorkerRig, stream: bool) -> None:
    response = rig.complete(stop=["wörl"], stream=stream, return_token_ids=True, stream_interval=50, max_tokens=64)

    events = events_of(response) if stream else [response.json()]
    ids = ids_in(events)
    assert ids == rig.ids_of(TEXT)[: len(ids)] and "wörl" in rig.text_of(ids)
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello "
    assert events[-1]["choices"][0]["stop_reason"] == "wörl"


def test_a_parsed_answer_has_its_ids_too_and_none_where_reasoning_is_hidden(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path, template=THINKING), text="why</think>so")
    ids = rig.ids_of("why</think>so")

    for fields in ({}, {"stream_interval": 3}):
        events = events_of(rig.chat(stream=True, return_token_ids=True, stream_options=BOTH, **fields))
        assert ids_in(events) == ids
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "so"
        assert "".join(event["choices"][0]["delta"].get("reasoning", "") for event in events[:-1]) == "why"
        assert events[-2]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    hidden = events_of(rig.chat(stream=True, return_token_ids=True, include_reasoning=False))
    whole = rig.chat(return_token_ids=True, include_reasoning=False).json()
    assert not ids_in(hidden) and whole["choices"][0]["token_ids"] is None
    assert hidden[0]["prompt_token_ids"] == whole["prompt_token_ids"] != []
