"""/v1/messages of one worker: the real application and client over a scripted engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from anthropic import AsyncAnthropic

from config.settings import ServerSettings
from ipc.messages import Generate, Rejected, number_of
from ipc.record import Failure, FailureCode
from tests.unit.apiserver.worker_rig import CHATML, MAX_MODEL_LEN, TEXT, MakeRig, WorkerRig, make_model_folder

TURNS = [{"role": "user", "content": "hi"}]


def ask(rig: WorkerRig, messages: Any = TURNS, **fields: Any) -> httpx.Response:
    return rig.post("/v1/messages", {"model": "tiny", "max_tokens": 64, "messages": messages, **fields})


def prompt_of(rig: WorkerRig, messages: Any = TURNS, **fields: Any) -> str:
    """The prompt that the engine gets for these."""
    response = ask(rig, messages, **fields)
    assert response.status_code == 200, response.text
    return rig.text_of(rig.engine.prompts[-1])


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error; checks that it has Anthropic's shape."""
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["request_id"] == response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"type", "message"}
    return error


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events; checks that each is named by its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for event in events:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + found[-1]["type"]
    return found


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_is_answered_in_anthropics_shape(rig: WorkerRig) -> None:
    body = ask(rig).json()

    num_prompt_tokens = len(rig.engine.prompts[0])
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": num_prompt_tokens - 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 3,
            "output_tokens": len(rig.ids_of(TEXT)),
        },
    }


def test_a_stream_has_anthropics_events_in_their_order(rig: WorkerRig) -> None:
    events = events_of(ask(rig, stream=True))

    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = events[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None
    assert start["usage"]["input_tokens"] == len(rig.engine.prompts[0])
    assert "".join(event["delta"]["text"] for event in events[3:-3]) == TEXT
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"] == {
        "input_tokens": len(rig.engine.prompts[0]) - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": len(rig.ids_of(TEXT)),
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_named_and_not_part_of_the_text(rig: WorkerRig, stream: bool) -> None:
    response = ask(rig, stop_sequences=["nothing", "wör"], stream=stream)

    if stream:
        events = events_of(response)
        delta = events[-2]["delta"]
        text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    else:
        delta = response.json()
        text = delta["content"][0]["text"]
    assert text == "Hello "
    assert (delta["stop_reason"], delta["stop_sequence"]) == ("stop_sequence", "wör")


def test_the_limit_is_max_tokens(rig: WorkerRig) -> None:
    assert ask(rig, max_tokens=2).json()["stop_reason"] == "max_tokens"
    assert rig.engine.requests[0].sampling.max_tokens == 2


def test_sampling_fields_reach_the_engine(rig: WorkerRig) -> None:
    ask(rig, temperature=0.5, top_p=0.25, top_k=7, metadata={"user_id": "somebody"}, service_tier="auto")

    sampling = rig.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 7)


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_system_is_text_or_blocks_in_front(rig: WorkerRig) -> None:
    blocks = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=0d1f"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]

    texts = [prompt_of(rig, system=system) for system in ("Be brief.", blocks)]

    assert texts[0] == texts[1]
    assert texts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")


def test_a_system_turn_stands_where_it_was(rig: WorkerRig) -> None:
    turns = [*TURNS, {"role": "system", "content": "Now rhyme."}, {"role": "user", "content": "go"}]

    assert "hi<|im_end|>\n<|im_start|>system\nNow rhyme.<|im_end|>\n<|im_start|>user\ngo" in prompt_of(rig, turns)


def test_a_late_system_turn_is_said_first_where_the_template_takes_none(tmp_path: Path) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    )
    rig = WorkerRig(make_model_folder(tmp_path / "strict", template=strict + "{% endfor %}" + CHATML))
    turns = [*TURNS, {"role": "system", "content": "Now rhyme."}, {"role": "user", "content": "go"}]

    text = prompt_of(rig, turns, system="Be brief.")

    assert text.startswith("<|im_start|>system\nBe brief.\nNow rhyme.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")


def test_text_of_the_assistant_at_the_end_is_continued(rig: WorkerRig) -> None:
    for content in ("The best answer is (", [{"type": "text", "text": "The best answer is ("}]):
        text = prompt_of(rig, [*TURNS, {"role": "assistant", "content": content}])

        assert text.endswith("<|im_start|>assistant\nThe best answer is (")


def test_tool_results_are_turns_of_their_own(rig: WorkerRig) -> None:
    turns = [
        *TURNS,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A tool would know.", "signature": ""},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such city", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]

    text = prompt_of(rig, turns)

    assert "assistant\nLet me look.<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n" in text
    assert "<|im_start|>tool\nError: no such city<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n" in text


def test_tokens_are_counted_as_they_would_be_used(rig: WorkerRig) -> None:
    body = {"model": "tiny", "messages": TURNS, "system": "Be brief."}

    counted = rig.post("/v1/messages/count_tokens", body).json()
    ask(rig, system="Be brief.")

    assert counted == {"input_tokens": len(rig.engine.prompts[0])}
    assert len(rig.engine.requests) == 1, "counting asks no engine"


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLS = (
    'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris 日本"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = CHATML + "{# <tool_call> #}{% if tools %}{{ tools | tojson }}{% endif %}"
    return make_model_folder(tmp_path_factory.mktemp("models") / "caller", template=template)


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_blocks_of_tool_use(caller: Path, stream: bool) -> None:
    rig = WorkerRig(caller, text=CALLS)

    response = ask(rig, tools=[WEATHER], stream=stream, max_tokens=200)

    if stream:
        events = events_of(response)
        blocks, stop = gathered(events), events[-2]["delta"]
    else:
        blocks, stop = response.json()["content"], response.json()
    assert [block["type"] for block in blocks] == ["text", "tool_use", "tool_use"]
    assert blocks[0]["text"] == "I look.\n"
    assert [(block["name"], block["input"]) for block in blocks[1:]] == [
        ("get_weather", {"city": "Paris 日本"}),
        ("get_weather", {"city": "Rome"}),
    ]
    assert len({block["id"] for block in blocks[1:]}) == 2
    assert stop["stop_reason"] == "tool_use"


def test_the_real_client_gathers_thinking_and_calls(tmp_path: Path) -> None:
    template = CHATML + "{# <tool_call> #}{% if add_generation_prompt %}{{ '<think>\\n' }}{# </think> #}{% endif %}"
    rig = WorkerRig(make_model_folder(tmp_path / "both", template=template), text=f"{THOUGHT}</think>{CALLS}")
    fields: Any = {"model": "tiny", "max_tokens": 300, "messages": TURNS, "tools": [WEATHER]}

    async def use(_http: Any) -> None:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(rig.app))  # the SDK takes no other
        client: Any = AsyncAnthropic(base_url="http://worker", api_key="x", http_client=http, max_retries=0)
        whole = await client.messages.create(**fields)
        async with client.messages.stream(**fields) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            thinking, text, *calls = message.content
            assert thinking.type == "thinking" and thinking.thinking == THOUGHT
            assert text.type == "text" and text.text == "I look.\n"
            assert [call.input for call in calls if call.type == "tool_use"] == [
                {"city": "Paris 日本"},
                {"city": "Rome"},
            ]
            assert message.stop_reason == "tool_use"

    rig.with_client(use)


def test_one_call_at_a_time_when_parallel_use_is_off(caller: Path) -> None:
    rig = WorkerRig(caller, text=CALLS)
    choice = {"type": "auto", "disable_parallel_tool_use": True}

    content = ask(rig, tools=[WEATHER], tool_choice=choice, max_tokens=200).json()["content"]

    assert [block["type"] for block in content] == ["text", "tool_use"]


def test_a_call_that_was_asked_for_by_name_ends_the_message_as_any_call_does(caller: Path) -> None:
    rig = WorkerRig(caller, text='{"city": "Rome"}')

    message = ask(rig, tools=[WEATHER], tool_choice={"type": "tool", "name": WEATHER["name"]}, max_tokens=200).json()

    assert [(block["type"], block.get("input")) for block in message["content"]] == [("tool_use", {"city": "Rome"})]
    assert message["stop_reason"] == "tool_use"


def test_tools_are_shown_to_the_model_and_counted(caller: Path) -> None:
    rig = WorkerRig(caller, text="ok")
    body = {"model": "tiny", "messages": TURNS, "tools": [WEATHER]}

    counted = rig.post("/v1/messages/count_tokens", body).json()["input_tokens"]
    text = prompt_of(rig, tools=[WEATHER])

    assert counted == len(rig.engine.prompts[-1])
    assert '"name": "get_weather"' in text and '"parameters": {"type": "object"' in text


def test_a_call_that_is_cut_off_has_no_input_yet(caller: Path) -> None:
    rig = WorkerRig(caller, text=CALLS)
    num_tokens = len(rig.ids_of(CALLS[: CALLS.index("Paris")]))

    body = ask(rig, tools=[WEATHER], max_tokens=num_tokens).json()

    assert body["stop_reason"] == "max_tokens"
    assert body["content"][1]["input"] == {}


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = CHATML + "{% if add_generation_prompt %}{{ '<think>\\n' }}{# closed by </think> #}{% endif %}"
    return make_model_folder(tmp_path_factory.mktemp("models") / "thinker", template=template)


THOUGHT = "Two and two 日本."


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_a_block_of_thinking_in_front(thinker: Path, stream: bool) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")

    response = ask(rig, stream=stream)

    blocks = gathered(events_of(response)) if stream else response.json()["content"]
    assert blocks == [
        {"type": "thinking", "thinking": THOUGHT, "signature": ""},
        {"type": "text", "text": TEXT},
    ]


def test_a_thinking_budget_is_the_engines(thinker: Path) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")

    ask(rig, thinking={"type": "enabled", "budget_tokens": 1024})

    thinking = rig.engine.requests[0].sampling.thinking
    assert thinking is not None and thinking.max_tokens == 1024


def test_a_thinking_budget_of_a_model_that_does_not_think_is_refused(rig: WorkerRig) -> None:
    response = ask(rig, thinking={"type": "enabled", "budget_tokens": 1024})

    assert response.status_code == 400
    assert error_of(response)["message"].startswith("thinking.budget_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_cut_by_the_limit_is_all_there_is(thinker: Path, stream: bool) -> None:
    rig = WorkerRig(thinker, text=f"{THOUGHT}</think>{TEXT}")

    response = ask(rig, stream=stream, max_tokens=4)

    blocks = gathered(events_of(response)) if stream else response.json()["content"]
    assert [block["type"] for block in blocks] == ["thinking"]


def gathered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a stream's events add up to; checks that each is opened, filled and closed in its turn."""
    blocks: list[dict[str, Any]] = []
    is_open, arguments = False, ""
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(blocks)
                blocks.append(event["content_block"])
                is_open, arguments = True, ""
            case "content_block_delta":
                assert is_open and event["index"] == len(blocks) - 1
                delta = event["delta"]
                name = delta["type"].removesuffix("_delta")
                if name == "input_json":
                    arguments += delta["partial_json"]
                else:
                    blocks[-1][name] += delta[name]
            case "content_block_stop":
                assert is_open and event["index"] == len(blocks) - 1
                is_open = False
                if arguments:
                    blocks[-1]["input"] = json.loads(arguments)
    assert not is_open
    return blocks


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────

IMAGE = {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "content[0].name"),
        ({"system": [IMAGE]}, "system[0]"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop_sequences": [""]}, "stop"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "endless"}}, "thinking.type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "weather"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"container": "c_1"}, "container"),
        ({"max_tokens": MAX_MODEL_LEN + 1}, "maximum context length"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_the_field(rig: WorkerRig, fields: dict[str, Any], named: str) -> None:
    body = {"model": "tiny", "max_tokens": 8, "messages": TURNS, **fields}

    response = rig.post("/v1/messages", body)

    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert not rig.engine.requests


def test_errors_of_the_routes_have_anthropics_shape_whatever_they_are(make_rig: MakeRig) -> None:
    rig = make_rig(server=ServerSettings(api_key=("secret",), max_body_bytes=1024))
    key = {"x-api-key": "secret"}

    answers = {
        "authentication_error": rig.post("/v1/messages", {}),
        "not_found_error": rig.post("/v1/messages", {"model": "x", "max_tokens": 1, "messages": TURNS}, headers=key),
        "request_too_large": rig.post("/v1/messages/count_tokens", {"messages": "x" * 2000}, headers=key),
    }

    assert [response.status_code for response in answers.values()] == [401, 404, 413]
    for kind, response in answers.items():
        assert error_of(response)["type"] == kind
    assert error_of(rig.get("/v1/messages", headers=key))["type"] == "invalid_request_error"
    assert error_of(rig.get("/v1/messages/batches", headers=key))["type"] == "not_found_error"


def test_a_key_may_come_as_x_api_key_or_as_bearer(make_rig: MakeRig) -> None:
    rig = make_rig(server=ServerSettings(api_key=("secret",)))
    body = {"model": "tiny", "max_tokens": 1, "messages": TURNS}

    for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
        assert rig.post("/v1/messages", body, headers=headers).status_code == 200
    assert rig.post("/v1/messages", body, headers={"x-api-key": "wrong"}).status_code == 401
    assert rig.chat().status_code == 401
    assert rig.post("/v1/chat/completions", {"messages": TURNS}, headers={"x-api-key": "secret"}).status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server_is_529_with_retry_after(make_rig: MakeRig, stream: bool) -> None:
    def refuse(message: Generate, _prompt: list[int]) -> Rejected:
        return Rejected(stream_id=message.stream_id, reason="max_num_queued_reqs", retry_after_s=7)

    response = ask(make_rig(refuse), stream=stream)

    assert response.status_code == 529
    assert response.headers["retry-after"] == "7"
    assert error_of(response)["type"] == "overloaded_error"


def test_a_failure_in_mid_stream_is_an_error_event(rig: WorkerRig) -> None:
    def begin_and_fail(message: Generate, _prompt: list[int]) -> None:
        number = number_of(message.stream_id)
        rig.engine._publish(streams=[number], tokens=rig.ids_of(TEXT)[:1])
        failure = Failure(number, FailureCode.INTERNAL, "broken")
        asyncio.get_running_loop().call_later(0.05, lambda: rig.engine._publish(failures=[failure]))

    rig.engine.script = begin_and_fail
    response = ask(rig, stream=True)

    *_, last = events_of(response)
    assert last == {
        "type": "error",
        "error": {"type": "api_error", "message": "broken"},
        "request_id": response.headers["request-id"],
    }


def test_a_failure_of_the_engine_is_an_api_error(make_rig: MakeRig) -> None:
    response = ask(make_rig(lambda _message, _prompt: Failure(0, FailureCode.INTERNAL, "broken")))

    assert response.status_code == 500
    assert error_of(response)["type"] == "api_error"
