"""/v1/responses of one worker: the real application and client over a scripted engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from config.settings import ServerSettings
from ipc.messages import Generate, Rejected, number_of
from ipc.record import Failure, FailureCode
from tests.unit.apiserver.worker_rig import (
    CHATML,
    MAX_MODEL_LEN,
    TEXT,
    MakeRig,
    WorkerRig,
    error_of,
    make_model_folder,
)

CREATED = ["response.created", "response.in_progress"]
OPENED = ["response.output_item.added", "response.content_part.added"]
CLOSED = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def ask(rig: WorkerRig, input: Any = "hi", **fields: Any) -> httpx.Response:
    return rig.post("/v1/responses", {"model": "tiny", "input": input, **fields})


def prompt_of(rig: WorkerRig, input: Any = "hi", **fields: Any) -> str:
    """The prompt that the engine gets for these."""
    response = ask(rig, input, **fields)
    assert response.status_code == 200, response.text
    return rig.text_of(rig.engine.prompts[-1])


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events; checks that each is named by its type and numbered in order."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for number, event in enumerate(events):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + found[-1]["type"]
        assert found[-1]["sequence_number"] == number
    return found


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_is_answered_by_a_response_object(rig: WorkerRig) -> None:
    body = ask(rig, temperature=0.5, metadata={"topic": "greeting"}, max_output_tokens=99).json()

    assert rig.text_of(rig.engine.prompts[0]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    [item] = body["output"]
    assert item["id"].startswith("msg_")
    assert {**item, "id": ""} == {
        "id": "",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
    }
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    assert (body["temperature"], body["max_output_tokens"], body["metadata"]) == (0.5, 99, {"topic": "greeting"})
    num_prompt_tokens, num_tokens = len(rig.engine.prompts[0]), len(rig.ids_of(TEXT))
    assert body["usage"] == {
        "input_tokens": num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": num_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def test_a_stream_has_the_whole_sequence_of_events(rig: WorkerRig) -> None:
    events = events_of(ask(rig, stream=True))

    kinds = [event["type"] for event in events]
    assert kinds[:4] == CREATED + OPENED
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [*CLOSED, "response.completed"]
    assert "".join(event["delta"] for event in events[4:-4]) == TEXT == events[-4]["text"]
    assert len({event["item_id"] for event in events[3:-2]}) == 1
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    final = events[-1]["response"]
    assert final["id"] == events[0]["response"]["id"]
    assert final["output"] == [events[-2]["item"]]
    assert final["usage"]["output_tokens"] == len(rig.ids_of(TEXT))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_its_limit_is_incomplete(rig: WorkerRig, stream: bool) -> None:
    response = ask(rig, max_output_tokens=3, stream=stream)

    body = events_of(response)[-1] if stream else response.json()
    if stream:
        assert body["type"] == "response.incomplete"
        body = body["response"]
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_a_limit_beyond_the_context_is_the_context(rig: WorkerRig) -> None:
    ask(rig, max_output_tokens=10 * MAX_MODEL_LEN)

    assert rig.engine.requests[0].sampling.max_tokens == MAX_MODEL_LEN - len(rig.engine.prompts[0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text(rig: WorkerRig, stream: bool) -> None:
    response = ask(rig, stop=["wör"], stream=stream)

    body = events_of(response)[-1]["response"] if stream else response.json()
    assert body["output"][0]["content"][0]["text"] == "Hello "
    assert body["status"] == "completed"


def test_a_failed_stream_ends_with_a_response_that_failed(make_rig: MakeRig) -> None:
    rig = make_rig(lambda _message, _prompt: None)  # tokens and a failure follow by hand
    ids = rig.ids_of(TEXT)

    def begin_and_fail(message: Generate, _prompt: list[int]) -> None:
        number = number_of(message.stream_id)
        rig.engine._publish(streams=[number], tokens=ids[:1])
        failure = Failure(number, FailureCode.INTERNAL, "broken")
        asyncio.get_running_loop().call_later(0.05, lambda: rig.engine._publish(failures=[failure]))

    rig.engine.script = begin_and_fail
    events = events_of(ask(rig, stream=True))

    assert [event["type"] for event in events[-4:]] == [*CLOSED, "response.failed"]
    final = events[-1]["response"]
    assert (final["status"], final["error"]["code"]) == ("failed", "server_error")
    assert "broken" in final["error"]["message"]
    assert rig.get(f"/v1/responses/{final['id']}").json()["status"] == "failed"


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris 日本"}}\n</tool_call>'


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = CHATML + "{# <tool_call> #}{% if tools %}{{ tools | tojson }}{% endif %}"
    return make_model_folder(tmp_path_factory.mktemp("models") / "caller", template=template)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_an_item_of_its_own(caller: Path, stream: bool) -> None:
    rig = WorkerRig(caller, text="I look.\n" + CALL)

    response = ask(rig, tools=[WEATHER], stream=stream)

    body = events_of(response)[-1]["response"] if stream else response.json()
    message, call = body["output"]
    assert message["content"][0]["text"] == "I look.\n"
    assert (call["type"], call["name"], call["status"]) == ("function_call", "get_weather", "completed")
    assert json.loads(call["arguments"]) == {"city": "Paris 日本"}
    assert call["id"] != call["call_id"]
    assert body["tools"] == [WEATHER]


def test_arguments_are_streamed_between_the_items_events(caller: Path) -> None:
    rig = WorkerRig(caller, text=CALL)

    events = events_of(ask(rig, tools=[WEATHER], stream=True))

    kinds = list(dict.fromkeys(event["type"] for event in events))
    assert kinds == [
        *CREATED,
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert deltas and "".join(deltas) == done["arguments"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]


def test_the_real_client_gathers_calls(caller: Path) -> None:
    rig = WorkerRig(caller, text="I look.\n" + CALL)
    fields: Any = {"model": "tiny", "input": "weather?", "tools": [WEATHER]}

    async def use(http: Any) -> None:
        client: Any = AsyncOpenAI(base_url="http://worker/v1", api_key="x", http_client=http, max_retries=0)
        whole = await client.responses.create(**fields)
        async with client.responses.stream(**fields) as stream:
            streamed = await stream.get_final_response()
        for response in (whole, streamed):
            assert response.output_text == "I look.\n"
            call = response.output[1]
            assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris 日本"}

    rig.with_client(use)


def test_the_output_of_a_call_goes_on_behind_it(caller: Path) -> None:
    rig = WorkerRig(caller, text=CALL)
    first = ask(rig, "weather?", tools=[WEATHER]).json()
    output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "sunny"}

    text = prompt_of(rig, [output], tools=[WEATHER], previous_response_id=first["id"])

    assert "user\nweather?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>" in text


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = CHATML + "{% if add_generation_prompt %}{{ '<think>\\n' }}{# closed by </think> #}{% endif %}"
    return make_model_folder(tmp_path_factory.mktemp("models") / "thinker", template=template)


THOUGHT = "Two and two 日本."


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_an_item_in_front_of_the_message(thinker: Path, stream: bool) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")

    response = ask(rig, stream=stream)

    body = events_of(response)[-1]["response"] if stream else response.json()
    thinking, message = body["output"]
    assert (thinking["type"], thinking["status"], thinking["summary"]) == ("reasoning", "completed", [])
    assert thinking["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
    assert message["content"][0]["text"] == TEXT
    num_reasoning_tokens = body["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert len(rig.ids_of(THOUGHT)) <= num_reasoning_tokens <= len(rig.ids_of(THOUGHT + "</think>"))


def test_a_stream_opens_and_closes_each_item_in_its_turn(thinker: Path) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")

    events = events_of(ask(rig, stream=True))

    kinds = list(dict.fromkeys(f"{event.get('output_index', '')} {event['type']}" for event in events))
    reasoning_closed = ["response.reasoning_text.done", *CLOSED[1:]]
    assert kinds == [
        *(f" {kind}" for kind in CREATED),
        *(f"0 {kind}" for kind in [*OPENED, "response.reasoning_text.delta", *reasoning_closed]),
        *(f"1 {kind}" for kind in [*OPENED, "response.output_text.delta", *CLOSED]),
        " response.completed",
    ]


def test_reasoning_comes_back_into_the_conversation(thinker: Path) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")
    first = ask(rig).json()

    ask(rig, "and now?", previous_response_id=first["id"])

    assert f"<|im_start|>assistant\n{TEXT}<|im_end|>" in rig.text_of(rig.engine.prompts[-1])


# ── input ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_instructions_and_items_become_a_conversation(rig: WorkerRig) -> None:
    items = [
        {"role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
    ]

    assert prompt_of(rig, items, instructions="Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none<|im_end|>\n"
        "<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_unfinished_message_is_gone_on_with(rig: WorkerRig) -> None:
    item = {"type": "message", "role": "assistant", "status": "incomplete", "content": "The answer is ("}

    assert prompt_of(rig, [{"role": "user", "content": "q"}, item]).endswith("assistant\nThe answer is (")


def test_truncation_auto_drops_the_oldest_turns_and_keeps_the_instructions(rig: WorkerRig) -> None:
    turns = [{"role": "user", "content": f"<{number}> " + "x " * 60} for number in range(12)]
    assert ask(rig, turns).status_code == 400

    text = prompt_of(rig, turns, truncation="auto", instructions="Be brief.", max_output_tokens=50)

    assert len(rig.engine.prompts[-1]) <= MAX_MODEL_LEN - 50
    assert text.startswith("<|im_start|>system\nBe brief.")
    kept = [number for number in range(12) if f"<{number}>" in text]
    assert kept == list(range(12 - len(kept), 12)) and 1 < len(kept) < 12
    assert rig.engine.requests[-1].sampling.max_tokens == 50


def test_truncation_of_a_last_turn_that_never_fits_is_refused(rig: WorkerRig) -> None:
    turns = [{"role": "user", "content": "x " * 600}, {"role": "user", "content": "y " * 600}]

    response = ask(rig, turns, truncation="auto")

    assert response.status_code == 400
    assert error_of(response)["param"] == "input"


def test_logprobs_come_where_they_are_included(make_rig: MakeRig) -> None:
    rig = make_rig()
    ask(rig, include=["message.output_text.logprobs"], top_logprobs=2)

    assert rig.engine.requests[0].sampling.num_logprobs == 2


# ── the store ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_retrieved_as_it_was_answered(rig: WorkerRig, stream: bool) -> None:
    response = ask(rig, stream=stream)
    answered = events_of(response)[-1]["response"] if stream else response.json()

    assert answered["store"] is True
    assert rig.get(f"/v1/responses/{answered['id']}").json() == answered


def test_a_conversation_goes_on_from_a_response_without_its_instructions(rig: WorkerRig) -> None:
    first = ask(rig, "one", instructions="Be brief.").json()
    second = ask(rig, "two", previous_response_id=first["id"]).json()

    text = prompt_of(rig, "three", previous_response_id=second["id"], instructions="Be kind.")

    said = [("system", "Be kind."), ("user", "one"), ("assistant", TEXT), ("user", "two"), ("assistant", TEXT)]
    turns = [*said, ("user", "three")]
    assert text == "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns) + (
        "<|im_start|>assistant\n"
    )
    assert second["previous_response_id"] == first["id"]


def test_a_deleted_response_is_gone(rig: WorkerRig) -> None:
    response_id = ask(rig).json()["id"]

    deleted = rig.request("DELETE", f"/v1/responses/{response_id}")

    assert deleted.json() == {"id": response_id, "object": "response", "deleted": True}
    assert rig.get(f"/v1/responses/{response_id}").status_code == 404
    assert rig.request("DELETE", f"/v1/responses/{response_id}").status_code == 404
    assert ask(rig, previous_response_id=response_id).status_code == 400


@pytest.mark.parametrize("has_store", [False, True])
def test_what_is_not_stored_is_not_found(make_rig: MakeRig, has_store: bool) -> None:
    rig = make_rig(has_store=has_store)
    body = ask(rig, **({"store": False} if has_store else {})).json()

    assert body["store"] is False
    response = rig.get(f"/v1/responses/{body['id']}")
    assert response.status_code == 404
    assert error_of(response)["code"] == "response_not_found"
    error = error_of(ask(rig, previous_response_id=body["id"]))
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


def test_a_server_without_a_store_refuses_to_promise_one(make_rig: MakeRig) -> None:
    response = ask(make_rig(has_store=False), store=True)

    assert response.status_code == 400
    assert error_of(response)["param"] == "store"


@pytest.mark.parametrize(
    "guess", ["resp_", "resp_zz", "resp_" + "0" * 32, "resp_" + "f" * 32, "x", "resp_-001" + "0" * 28]
)
def test_a_guessed_id_finds_nothing(rig: WorkerRig, guess: str) -> None:
    ask(rig)

    assert rig.get(f"/v1/responses/{guess}").status_code == 404


def test_a_response_is_found_with_its_own_key_only(make_rig: MakeRig) -> None:
    rig = make_rig(server=ServerSettings(api_key=("mine", "yours")))
    mine, yours = ({"authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    response_id = rig.post("/v1/responses", {"input": "hi"}, headers=mine).json()["id"]

    assert rig.get(f"/v1/responses/{response_id}", headers=mine).status_code == 200
    assert rig.get(f"/v1/responses/{response_id}", headers=yours).status_code == 404
    assert rig.request("DELETE", f"/v1/responses/{response_id}", headers=yours).status_code == 404
    body = {"input": "go on", "previous_response_id": response_id}
    assert rig.post("/v1/responses", body, headers=yours).status_code == 400
    assert rig.get(f"/v1/responses/{response_id}").status_code == 401


def test_only_the_newest_are_kept(rig: WorkerRig) -> None:
    ids = [ask(rig).json()["id"] for _ in range(20)]

    found = [rig.get(f"/v1/responses/{response_id}").status_code for response_id in ids]

    assert found == [404] * 4 + [200] * 16


def test_only_what_runs_in_the_background_could_be_cancelled(rig: WorkerRig) -> None:
    response_id = ask(rig).json()["id"]

    assert rig.post(f"/v1/responses/{response_id}/cancel").status_code == 400
    assert rig.post("/v1/responses/resp_nobody/cancel").status_code == 404


@pytest.mark.parametrize("query", ["stream=true", "starting_after=3"])
def test_events_cannot_be_asked_for_again(rig: WorkerRig, query: str) -> None:
    response = rig.get(f"/v1/responses/{ask(rig).json()['id']}?{query}")

    assert response.status_code == 400
    assert error_of(response)["param"] == query.partition("=")[0]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
        ({"input": "x " * 2000}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"truncation": "middle"}, "truncation"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_the_field(rig: WorkerRig, fields: dict[str, Any], param: str) -> None:
    response = rig.post("/v1/responses", {"input": "hi", **fields})

    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert not rig.engine.requests


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_still_a_status(make_rig: MakeRig, stream: bool) -> None:
    def refuse(message: Generate, _prompt: list[int]) -> Rejected:
        return Rejected(stream_id=message.stream_id, reason="max_num_queued_reqs", retry_after_s=7)

    response = ask(make_rig(refuse), stream=stream)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
