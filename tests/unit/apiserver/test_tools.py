"""Tools in requests and calls in answers, as clients of one worker see them. The answers are made by hand, in the form that
each model was trained to write."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from apiserver.tools.forms import FORMS, form_or_none
from config.settings import ServerSettings
from tests.unit.apiserver.worker_rig import CHATML, WorkerRig, error_of, events_of, make_model_folder

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "units": {"type": ["string", "null"]},
                "at": {"anyOf": [{"type": "object"}, {"type": "array"}]},
                "exact": {"type": "boolean"},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]


def named(name: str) -> dict[str, Any]:
    """A tool_choice."""
    return {"type": "function", "function": {"name": name}}


def call_schema(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    properties = {"name": {"type": "string", "enum": [name]}, "parameters": parameters}
    fields = {"properties": properties, "required": ["name", "parameters"], "additionalProperties": False}
    return {"type": "object", **fields}


PARIS = ("get_weather", {"city": "Paris 日本", "days": 3})

# form, recorded answer, content, calls
RECORDED: list[tuple[str, str, str | None, list[tuple[str, dict[str, Any]]]]] = [
    (
        "hermes",
        'I will look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris 日本", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "I will look.\n",
        [PARIS, ("clock", {})],
    ),
    (
        "hermes",
        '<tool_call>\n{"arguments": "{\\"city\\": \\"Rome\\"}", "name": "get_weather"}',
        None,
        [("get_weather", {"city": "Rome"})],
    ),
    ("hermes", '<tool_call>{"name": "clock", "arguments": null}</tool_call> Done.', " Done.", [("clock", {})]),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris 日本", "days": 3}}; {"name": "clock", "parameters": {}}',
        None,
        [PARIS, ("clock", {})],
    ),
    ("llama3_json", '{"city": "Paris"}', '{"city": "Paris"}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris 日本", "days": 3}}]', None, [PARIS]),
    ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris 日本", "days": 3}', None, [PARIS]),
    ("pythonic", "[get_weather(city='Paris 日本', days=3), clock()]", None, [PARIS, ("clock", {})]),
    ("pythonic", "[1] is a footnote.", "[1] is a footnote.", []),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis 日本\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        None,
        [PARIS],
    ),
    (
        "qwen3_coder",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\nfirst\n  second "x"\n\n</parameter>\n'
        '<parameter=units>\nnull\n</parameter>\n'
        '<parameter=at>\n{"lat": [1, 2.5]}\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n'
        "<parameter=days>\nsoon\n</parameter>\n<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        None,
        [
            (
                "get_weather",
                {
                    "city": 'first\n  second "x"\n',
                    "units": None,
                    "at": {"lat": [1, 2.5]},
                    "exact": True,
                    "days": "soon",
                    "other": "7",
                },
            )
        ],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = CHATML + "{# <tool_call> <think> </think> #}"
    return make_model_folder(tmp_path_factory.mktemp("models") / "calling", template=template)


def rig_of(folder: Path, text: str, **settings: Any) -> WorkerRig:
    return WorkerRig(folder, text=text, server=ServerSettings(**settings))


def message_of(rig: WorkerRig, stream: bool, **fields: Any) -> dict[str, Any]:
    """Of a whole answer its message, of a stream what its deltas add up to, with the finish reason."""
    fields = {"tools": TOOLS, **fields}
    if not stream:
        choice = rig.chat(**fields).json()["choices"][0]
        return {**choice["message"], "finish_reason": choice["finish_reason"]}
    message: dict[str, Any] = {"content": None, "reasoning": None}
    calls: list[dict[str, Any]] = []
    for choice in [event["choices"][0] for event in events_of(rig.chat(stream=True, **fields))]:
        message["finish_reason"] = choice["finish_reason"]
        delta = choice["delta"]
        for name in ("content", "reasoning"):
            if delta.get(name):
                message[name] = (message[name] or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls) and call["function"]["arguments"] == ""
                calls.append({key: value for key, value in call.items() if key != "index"})
            else:
                assert call.keys() == {"index", "function"} and call["index"] == len(calls) - 1
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return {**message, "tool_calls": calls} if calls else message


def calls_of(message: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", ())
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("form", "text", "content", "calls"), RECORDED)
def test_calls_of_every_form_reach_the_client(
    folder: Path, stream: bool, form: str, text: str, content: str | None, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    message = message_of(rig_of(folder, text, tool_call_parser=form), stream)

    assert message["content"] == content
    assert calls_of(message) == calls
    assert message["finish_reason"] == ("tool_calls" if calls else "stop")
    ids = [call["id"] for call in message.get("tool_calls", ())]
    assert len(set(ids)) == len(ids)
    if form == "mistral":
        assert all(len(number) == 9 and number.isalnum() for number in ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_thinks_may_call_behind_its_reasoning_or_within(folder: Path, stream: bool) -> None:
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'

    behind = message_of(rig_of(folder, f"<think>Hm.</think>\n\n{call}"), stream)
    within = message_of(rig_of(folder, f"<think>Hm.{call}"), stream)

    for message in (behind, within):
        assert (message["reasoning"], message["content"]) == ("Hm.", None)
        assert calls_of(message) == [("clock", {})]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_off_inside_a_call_keeps_what_there_is(folder: Path, stream: bool) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3'

    rig = rig_of(folder, text + "}}")
    message = message_of(rig, stream, max_tokens=len(rig.ids_of(text)))

    assert message["finish_reason"] == "length"
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris", "days": 3'


@pytest.mark.parametrize("stream", [False, True])
def test_without_parallel_calls_only_the_first_is_kept(folder: Path, stream: bool) -> None:
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'

    message = message_of(rig_of(folder, call + call), stream, parallel_tool_calls=False)

    assert calls_of(message) == [("clock", {})]


def test_with_a_choice_of_none_calls_are_content_and_the_tools_are_still_shown(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    rig = rig_of(make_model_folder(tmp_path / "m", template="{{ tools | length }} <tool_call>"), call)

    message = message_of(rig, False, tool_choice="none")

    assert message["content"] == call and "tool_calls" not in message
    assert rig.text_of(rig.engine.prompts[0]) == "2 <tool_call>"


def test_tools_are_shown_to_the_model_as_vllm_shows_them(tmp_path: Path) -> None:
    rig = rig_of(make_model_folder(tmp_path / "m", template="{{ tools | tojson }}{# <tool_call> #}"), "x")

    rig.chat(tools=[CLOCK, {"type": "function", "function": {**WEATHER["function"], "strict": True}}])  # type: ignore[dict-item]

    assert json.loads(rig.text_of(rig.engine.prompts[0])) == [
        {"type": "function", "function": {"name": "clock", "description": None, "parameters": None}},
        {"type": "function", "function": {**WEATHER["function"], "strict": True}},  # type: ignore[dict-item]
    ]


def test_tokenize_counts_the_tools_too(tmp_path: Path) -> None:
    rig = rig_of(
        make_model_folder(tmp_path / "m", template="{% for t in tools %}{{ t.function.name }}{% endfor %}"), ""
    )

    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}

    assert rig.text_of(rig.post("/tokenize", body).json()["tokens"]) == "get_weatherclock"


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_choice_is_a_list_of_calls_that_the_engine_is_held_to(folder: Path, stream: bool) -> None:
    text = '[{"name": "get_weather", "parameters": {"city": "Rome"}}, {"name": "clock", "parameters": {}}]'
    rig = rig_of(folder, text, tool_call_parser="none")

    message = message_of(rig, stream, tool_choice="required", parallel_tool_calls=True)

    assert calls_of(message) == [("get_weather", {"city": "Rome"}), ("clock", {})]
    assert (message["content"], message["finish_reason"]) == (None, "tool_calls")
    grammar = rig.engine.requests[0].sampling.grammar
    assert grammar is not None and grammar.kind == "json_schema"
    assert json.loads(grammar.source) == {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                call_schema("get_weather", WEATHER["function"]["parameters"]),  # type: ignore[index]
                call_schema("clock", {"type": "object", "properties": {}, "additionalProperties": False}),
            ]
        },
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_choice_is_the_arguments_alone_and_finishes_as_any_answer(folder: Path, stream: bool) -> None:
    rig = rig_of(folder, ' {"city": "Rome"}')

    message = message_of(rig, stream, tool_choice=named("get_weather"))

    assert calls_of(message) == [("get_weather", {"city": "Rome"})]
    assert (message["content"], message["finish_reason"]) == (None, "stop")
    grammar = rig.engine.requests[0].sampling.grammar
    assert grammar is not None and json.loads(grammar.source) == WEATHER["function"]["parameters"]  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_enforced_calls_stand_behind_the_reasoning(folder: Path, stream: bool) -> None:
    rig = rig_of(folder, 'Hm.</think>\n\n{"city": "Rome"}', reasoning_parser="qwen3")

    message = message_of(rig, stream, tool_choice=named("get_weather"))

    assert (message["reasoning"], message["content"]) == ("Hm.", None)
    assert calls_of(message) == [("get_weather", {"city": "Rome"})]


def test_definitions_of_all_tools_stand_at_the_root_of_a_required_choice(folder: Path) -> None:
    def tool(name: str, unit: dict[str, Any]) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"u": {"$ref": "#/$defs/Unit"}}, "$defs": {"Unit": unit}}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    enum, text = {"enum": ["C", "F"]}, {"type": "string"}
    rig = rig_of(folder, "[]")
    rig.chat(tools=[tool("a", enum), tool("b", enum)], tool_choice="required", parallel_tool_calls=False)
    clash = rig.chat(tools=[tool("a", enum), tool("b", text)], tool_choice="required")

    grammar = rig.engine.requests[0].sampling.grammar
    assert grammar is not None
    schema = json.loads(grammar.source)
    parameters = {"type": "object", "properties": {"u": {"$ref": "#/$defs/Unit"}}}
    assert schema["items"]["anyOf"] == [call_schema("a", parameters), call_schema("b", parameters)]
    assert (schema["$defs"], schema["maxItems"]) == ({"Unit": enum}, 1)
    assert error_of(clash)["param"] == "tools[1].function.parameters.$defs"


def test_of_two_tools_of_one_name_a_named_choice_means_the_first(folder: Path) -> None:
    other = {**WEATHER["function"], "parameters": {"type": "object", "properties": {}}}  # type: ignore[dict-item]
    rig = rig_of(folder, "{}")

    message = message_of(
        rig, False, tools=[WEATHER, {"type": "function", "function": other}], tool_choice=named("get_weather")
    )

    assert calls_of(message) == [("get_weather", {})]
    grammar = rig.engine.requests[0].sampling.grammar
    assert grammar is not None and json.loads(grammar.source) == WEATHER["function"]["parameters"]  # type: ignore[index]


def test_the_real_client_gathers_the_calls_of_a_stream(folder: Path) -> None:
    rig = rig_of(folder, RECORDED[0][1])

    async def use(http: Any) -> Any:
        client: Any = AsyncOpenAI(base_url="http://worker/v1", api_key="x", http_client=http, max_retries=0)
        messages = [{"role": "user", "content": "hi"}]
        async with client.chat.completions.stream(model="tiny", messages=messages, tools=TOOLS) as stream:
            arguments = [event.arguments_delta async for event in stream if event.type.endswith("arguments.delta")]
            return arguments, await stream.get_final_completion()

    arguments, answer = rig.with_client(use)

    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == RECORDED[0][2]
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == RECORDED[0][3]
    assert "".join(arguments) == "".join(call.function.arguments for call in choice.message.tool_calls)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [CLOCK, {"type": "function", "function": {"name": ""}}]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools[0].function.parameters"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "some"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": named("watch")}, "tool_choice.function.name"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": named("clock")}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
def test_wrong_tools_are_a_400_with_the_fields_path(folder: Path, fields: dict[str, Any], param: str) -> None:
    response = rig_of(folder, "x").chat(**fields)

    assert (response.status_code, error_of(response)["param"]) == (400, param)


@pytest.mark.parametrize("settings", [{"tool_call_parser": "none"}, {"enable_auto_tool_choice": False}])
def test_calls_that_nobody_could_read_are_refused_and_the_remedy_is_named(
    folder: Path, settings: dict[str, Any]
) -> None:
    response = rig_of(folder, "x", **settings).chat(tools=TOOLS)

    assert (response.status_code, error_of(response)["param"]) == (400, "tools")
    assert "--tool-call-parser" in error_of(response)["message"]


def test_the_form_is_recognised_by_the_template() -> None:
    auto = ServerSettings()

    assert form_or_none(auto, None) is form_or_none(auto, CHATML) is None
    assert form_or_none(auto, "<tool_call> <function=x> <parameter=y>") is FORMS["qwen3_coder"]
    assert form_or_none(auto, '<tool_call>{"name": …}') is FORMS["hermes"]
    assert form_or_none(auto, "[TOOL_CALLS]") is FORMS["mistral"]
    assert form_or_none(auto, '{"name": function name, "parameters": dictionary}') is FORMS["llama3_json"]
    assert form_or_none(ServerSettings(tool_call_parser="pythonic"), "[TOOL_CALLS]") is FORMS["pythonic"]
