"""The HTTP API of one worker: the real application and client over a scripted engine."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai import AsyncOpenAI

from apiserver.routes.chat_intake import INLINE_PIECES
from apiserver.routes.tokenize import IDS_AT_ONCE
from config.settings import ServerSettings
from ipc.messages import EngineLost, Generate, Rejected
from ipc.record import Failure, FailureCode
from tests.unit.apiserver.worker_rig import (
    MAX_MODEL_LEN,
    TEXT,
    Connection,
    MakeRig,
    WorkerRig,
    error_of,
    events_of,
    http_scope,
    make_model_folder,
)

# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat_is_rendered_tokenized_and_answered(rig: WorkerRig) -> None:
    body = rig.chat("hi", temperature=0).json()

    assert rig.text_of(rig.engine.prompts[0]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == len(rig.engine.prompts[0])
    assert body["usage"]["completion_tokens"] == len(rig.ids_of(TEXT))
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert not rig.engine.requests[0].is_streaming, "the engine delivers once"


def test_bodies_have_the_keys_of_vllms(rig: WorkerRig) -> None:
    chat, completion = rig.chat().json(), rig.complete().json()

    assert chat.keys() == {
        "id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage", "prompt_logprobs",
        "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics",
    }  # fmt: skip
    assert chat["choices"][0].keys() == {
        "index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts",
    }  # fmt: skip
    assert chat["choices"][0]["message"].keys() == {
        "role", "content", "refusal", "annotations", "audio", "function_call", "reasoning",
    }  # fmt: skip
    assert completion.keys() == chat.keys() - {"prompt_logprobs", "prompt_token_ids", "prompt_text"}
    assert completion["choices"][0].keys() == {
        "index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs",
        "prompt_token_ids", "routed_experts",
    }  # fmt: skip
    assert (chat["object"], completion["object"]) == ("chat.completion", "text_completion")
    assert chat["id"].startswith("chatcmpl-") and completion["id"].startswith("cmpl-")


def test_a_chat_stream_opens_with_the_role_and_ends_with_finish_and_usage(rig: WorkerRig) -> None:
    events = events_of(rig.chat(stream=True, stream_options={"include_usage": True}))

    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == TEXT
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["stop"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(rig.ids_of(TEXT))
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1


def test_a_stream_without_include_usage_has_none(rig: WorkerRig) -> None:
    assert all("usage" not in event for event in events_of(rig.complete(stream=True)))


@pytest.mark.parametrize("stream", [False, True])
def test_every_prompt_and_choice_has_its_index(make_rig: MakeRig, stream: bool) -> None:
    rig = make_rig(lambda _message, prompt: [*prompt, 70])

    response = rig.complete(["one", "two"], n=2, stream=stream)

    bodies = events_of(response) if stream else [response.json()]
    texts = ["", "", "", ""]
    for body in bodies:
        for choice in body["choices"]:
            texts[choice["index"]] += choice["text"]
    end = rig.text_of([70])
    assert texts == ["one" + end, "one" + end, "two" + end, "two" + end]


def test_prompts_may_be_token_ids(rig: WorkerRig) -> None:
    ids = rig.ids_of("hello")

    rig.complete(ids)
    rig.complete([ids, ids])

    assert rig.engine.prompts == [ids, ids, ids]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text(rig: WorkerRig, stream: bool, include: bool) -> None:
    response = rig.complete(stop=["wörl", "unseen"], include_stop_str_in_output=include, stream=stream)

    choices = [body["choices"][0] for body in (events_of(response) if stream else [response.json()])]
    assert "".join(choice["text"] for choice in choices) == "Hello wörl" if include else "Hello "
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "wörl")


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_ends_with_length(rig: WorkerRig, stream: bool) -> None:
    response = rig.chat(max_tokens=2, stream=stream)

    choices = [body["choices"][0] for body in (events_of(response) if stream else [response.json()])]
    assert choices[-1]["finish_reason"] == "length"


def test_content_in_text_parts_is_joined(rig: WorkerRig) -> None:
    rig.chat([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])

    assert "user\none\ntwo<|im_end|>" in rig.text_of(rig.engine.prompts[0])


def test_a_final_message_can_be_continued(rig: WorkerRig) -> None:
    messages = [{"role": "user", "content": "Sing"}, {"role": "assistant", "content": "La la"}]

    rig.post(
        "/v1/chat/completions",
        {"messages": messages, "continue_final_message": True, "add_generation_prompt": False},
    )

    assert rig.text_of(rig.engine.prompts[0]).endswith("assistant\nLa la")


def test_template_kwargs_and_reasoning_effort_reach_the_template(tmp_path: Path) -> None:
    source = "{{ color | default('none') }} {{ reasoning_effort }} {{ enable_thinking }} {{ messages[0].content }}"
    rig = WorkerRig(make_model_folder(tmp_path / "kwargs", template=source))

    rig.chat(chat_template_kwargs={"color": "red"}, reasoning_effort="none")

    assert rig.text_of(rig.engine.prompts[0]) == "red none False hi"


def test_arguments_of_past_tool_calls_reach_the_template_as_objects(tmp_path: Path) -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %}{% endfor %}"
    rig = WorkerRig(make_model_folder(tmp_path / "tools", template=source))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "seven"}'}}

    rig.post("/v1/chat/completions", {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]})

    assert rig.text_of(rig.engine.prompts[0]) == "seven"


def test_sampling_reaches_the_engine(rig: WorkerRig) -> None:
    rig.complete(n=2, seed=5, temperature=0.25, max_tokens=7, priority=-1, stop_token_ids=[9])

    samplings = [request.sampling for request in rig.engine.requests]
    assert [sampling.seed for sampling in samplings] == [5, 6]
    assert {(s.temperature, s.max_tokens, s.stop_token_ids) for s in samplings} == {(0.25, 7, (9,))}
    assert rig.engine.requests[0].priority == -1


def test_the_real_client_reads_answers_streams_and_errors(rig: WorkerRig) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]

    async def use(http: Any) -> None:
        client = AsyncOpenAI(base_url="http://worker/v1", api_key="x", http_client=http, max_retries=0)
        answer = await client.chat.completions.create(model="tiny", messages=messages)
        assert answer.choices[0].message.content == TEXT
        chunks = [chunk async for chunk in await client.chat.completions.create(
            model="alias", messages=messages, stream=True, stream_options={"include_usage": True}
        )]  # fmt: skip
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
        assert chunks[0].model == "alias"
        assert chunks[-1].usage is not None
        completion = await client.completions.create(model="tiny", prompt="a", max_tokens=40)
        assert completion.choices[0].text == TEXT
        assert [model.id async for model in client.models.list()] == ["tiny", "alias"]
        assert (await client.models.retrieve("alias")).id == "alias"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-4", messages=messages)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="tiny", messages=messages, temperature=3)
        assert bad.value.param == "temperature"

    rig.with_client(use)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format.format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"guided_json": {"uniqueItems": True, "type": "array"}}, "guided_json"),
        ({"request_id": "a\nb"}, "request_id"),
    ],
)
def test_a_chat_that_cannot_be_served_is_a_400_with_the_fields_path(
    rig: WorkerRig, fields: dict[str, Any], param: str
) -> None:
    response = rig.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], **fields})

    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert rig.engine.requests == []


def test_a_template_that_raises_is_a_400_and_the_next_request_is_served(tmp_path: Path) -> None:
    source = "{% if messages[0].content == 'bad' %}{{ raise_exception('not that') }}{% endif %}fine"
    rig = WorkerRig(make_model_folder(tmp_path / "raises", template=source))

    assert "not that" in error_of(rig.chat("bad"))["message"]
    assert rig.chat("good").status_code == 200


def test_a_model_without_template_serves_completions_only(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "bare", template=None))

    assert "chat template" in error_of(rig.chat())["message"]
    assert rig.complete().status_code == 200


@pytest.mark.parametrize("prompt", ["", [], [[]], [""]])
def test_an_empty_prompt_is_a_400(rig: WorkerRig, prompt: Any) -> None:
    response = rig.complete(prompt)

    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


@pytest.mark.parametrize("num_words", [MAX_MODEL_LEN, 200_000])
def test_a_prompt_beyond_the_context_is_told_both_numbers(rig: WorkerRig, num_words: int) -> None:
    response = rig.complete("hello " * num_words)

    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in error["message"]
    assert [word for word in error["message"].split() if word.isdigit() and int(word) > MAX_MODEL_LEN]


def test_unknown_models_and_paths_are_404(rig: WorkerRig) -> None:
    by_body, by_path = rig.chat(model="nope/" * 1000), rig.get("/v1/models/nope")
    nowhere = rig.get("/v1/nowhere")

    assert [r.status_code for r in (by_body, by_path, nowhere)] == [404] * 3
    assert error_of(by_path)["code"] == error_of(by_body)["code"] == "model_not_found"
    assert "/v1/nowhere" in error_of(nowhere)["message"]
    assert len(by_body.content) < 2000, "the request is not quoted without bound"


def test_a_wrong_method_is_405_and_names_the_right_one(rig: WorkerRig) -> None:
    response = rig.get("/v1/chat/completions")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert error_of(response)["code"] == "method_not_supported"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Rejected(stream_id=0, reason="no_engine", retry_after_s=7), 503, "no_engine"),
        (Rejected(stream_id=0, reason="max_num_queued_reqs", retry_after_s=7), 503, "max_num_queued_reqs"),
        (Failure(0, FailureCode.DEADLINE, "too late"), 503, "deadline"),
        (Failure(0, FailureCode.INTERNAL, "broken"), 500, None),
        (Failure(0, FailureCode.TOO_LONG, "does not fit"), 400, None),
    ],
)
def test_a_request_that_the_fleet_refuses_is_a_status_even_for_streams(
    make_rig: MakeRig, outcome: Rejected | Failure, status: int, code: str | None, stream: bool
) -> None:
    def refuse(message: Generate, _prompt: list[int]) -> Rejected | Failure:
        if isinstance(outcome, Rejected):
            return msgspec.structs.replace(outcome, stream_id=message.stream_id)
        return outcome

    response = make_rig(refuse).chat(stream=stream)

    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_lost_engine_ends_a_request_with_503(make_rig: MakeRig) -> None:
    rig = make_rig(lambda message, _prompt: EngineLost(engine=0, stream_ids=(message.stream_id,)))

    response = rig.chat()

    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_every_choice(make_rig: MakeRig, stream: bool) -> None:
    rig = make_rig(lambda _message, _prompt: None)
    connection = Connection(json.dumps({"prompt": "a", "n": 2, "stream": stream}).encode())

    async def main() -> None:
        request = asyncio.ensure_future(
            rig.app(http_scope("POST", "/v1/completions"), connection.receive, connection.send)
        )
        while len(rig.engine.requests) < 2:
            await asyncio.sleep(0)
        connection.leave()
        await asyncio.wait_for(request, 5)

    asyncio.run(main())

    assert sorted(rig.engine.aborted) == sorted(request.stream_id for request in rig.engine.requests)
    assert rig.client.num_streams == 0


def test_a_body_over_the_limit_is_413_before_it_is_read(make_rig: MakeRig) -> None:
    rig = make_rig(server=ServerSettings(max_body_bytes=2048))
    small = json.dumps({"prompt": "a" * 1500}).encode()

    async def in_pieces() -> Any:
        for _ in range(100):
            yield b"x" * 100

    declared = rig.request("POST", "/v1/completions", content=b"x" * 2049)
    chunked = rig.request("POST", "/v1/completions", content=in_pieces())
    lying = rig.request("POST", "/v1/completions", content=in_pieces(), headers={"content-length": "5"})

    assert rig.request("POST", "/v1/completions", content=small).status_code != 413
    assert [r.status_code for r in (declared, chunked, lying)] == [413] * 3
    assert "2048" in error_of(declared)["message"]
    assert declared.headers["connection"] == "close"


def test_a_request_whose_client_leaves_while_sending_is_nobodys_error(rig: WorkerRig) -> None:
    async def main() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await rig.app(http_scope("POST", "/v1/completions"), receive, send)
        return sent

    assert asyncio.run(main()) == []


# ── tokenize, detokenize, models ─────────────────────────────────────────────────────────────────────────────────────


def test_tokenize_and_detokenize_are_inverse(rig: WorkerRig) -> None:
    tokenized = rig.post("/tokenize", {"model": "tiny", "prompt": TEXT}).json()
    detokenized = rig.post("/detokenize", {"model": "tiny", "tokens": tokenized["tokens"]}).json()

    ids = rig.ids_of(TEXT)
    assert tokenized == {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert detokenized == {"prompt": TEXT}


def test_tokenize_renders_messages_as_a_chat_would(rig: WorkerRig) -> None:
    messages = [{"role": "user", "content": "hi"}]

    body = rig.post("/tokenize", {"messages": messages, "return_token_strs": True}).json()
    rig.post("/v1/chat/completions", {"messages": messages})

    assert body["tokens"] == rig.engine.prompts[0]
    assert body["token_strs"][0] == "<|im_start|>"


def test_a_long_text_is_tokenized_in_turns_with_the_rest_of_the_loop(rig: WorkerRig) -> None:
    """Ten thousand tokens a piece, each with its text: no turn of the loop does them all."""
    text = "hello " * 10_000

    async def main() -> tuple[dict[str, Any], int]:
        num_turns = 0

        async def count_turns() -> None:
            nonlocal num_turns
            while True:
                num_turns += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count_turns())
        sent: list[Any] = []
        body = json.dumps({"prompt": text, "return_token_strs": True}).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await rig.app(http_scope("POST", "/tokenize"), receive, send)
        counter.cancel()
        return json.loads(b"".join(message.get("body", b"") for message in sent)), num_turns

    body, num_turns = asyncio.run(main())

    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) >= 10_000
    assert num_turns >= body["count"] // IDS_AT_ONCE


@pytest.mark.parametrize(
    ("fields", "is_long"),
    [
        ({}, False),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, False),
        ({"messages": [{"role": "user", "content": "hi"}] * (INLINE_PIECES + 1)}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * (INLINE_PIECES + 1)}]}, True),
        ({"chat_template_kwargs": {"x": "y" * 256 * (INLINE_PIECES + 1)}}, True),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "description": "d" * 256 * (INLINE_PIECES + 1)}}
                ]
            },
            True,
        ),
    ],
)
def test_a_chat_that_takes_a_template_long_is_rendered_beside_the_loop(
    rig: WorkerRig, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], is_long: bool
) -> None:
    threads: list[threading.Thread] = []

    def render(*_arguments: Any) -> str:
        threads.append(threading.current_thread())
        return "hi"

    monkeypatch.setattr("apiserver.routes.chat_intake.render_chat", render)

    rig.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}], **fields})

    [thread] = threads
    assert (thread is not threading.main_thread()) == is_long


def test_a_chat_of_more_messages_than_the_context_has_tokens_is_refused_before_anything_is_made_of_it(
    rig: WorkerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apiserver.routes.chat_intake.render_chat", None)

    answer = rig.post("/v1/chat/completions", {"messages": [{"role": "user"}] * (MAX_MODEL_LEN + 1)})

    assert answer.status_code == 400 and error_of(answer)["code"] == "context_length_exceeded"


def test_tokenize_takes_texts_longer_than_the_context(rig: WorkerRig) -> None:
    assert rig.post("/tokenize", {"prompt": "hello " * 100_000}).json()["count"] >= 100_000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools[0].function"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**12]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_wrong_tokenize_requests_are_400(rig: WorkerRig, path: str, body: dict[str, Any], param: str) -> None:
    response = rig.post(path, body)

    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_models_are_listed_under_every_served_name(rig: WorkerRig) -> None:
    listed = rig.get("/v1/models").json()

    assert [card["id"] for card in listed["data"]] == ["tiny", "alias"]
    assert {card["max_model_len"] for card in listed["data"]} == {MAX_MODEL_LEN}
    assert rig.get("/v1/models/alias").json() == listed["data"][1]


def test_with_several_keys_a_request_says_whose_it_is(folder: Path) -> None:
    rig = WorkerRig(folder, server=ServerSettings(api_key=("one", "two")))

    response = rig.post(
        "/v1/completions", {"prompt": "hi", "max_tokens": 2}, headers={"authorization": "Bearer two"}
    )  # fmt: skip

    assert response.status_code == 200
    assert [request.fair_key for request in rig.engine.requests] == [2]


def test_a_key_past_its_share_is_told_429_and_when_to_come_back(folder: Path) -> None:
    def refuse(message: Generate, _prompt: list[int]) -> Rejected:
        return Rejected(stream_id=message.stream_id, reason="key_share", retry_after_s=7)

    response = WorkerRig(folder, refuse).complete()

    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert (error_of(response)["type"], error_of(response)["code"]) == ("rate_limit_error", "key_share")
