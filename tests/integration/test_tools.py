"""Calls that the grammar enforces, from the real model through a real fleet to the `openai` client; with and without reasoning
in front of them. What the model says is of no worth at 135M parameters; that it fits the tools is."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.integration.fleet import Fleet

MODEL = "SmolLM2-135M-Instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "unit", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
MESSAGES = [{"role": "user", "content": "What will the weather be in Paris?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # Any: overloads of literals
    log = tmp_path_factory.mktemp("tools") / "fleet.log"
    with Fleet(log, "--workers", "1", "--reasoning-parser", "glm45") as fleet:
        yield OpenAI(base_url=fleet.base_url + "/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def thinking_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = tmp_path_factory.mktemp("tools") / "thinking.log"
    with Fleet(log, "--workers", "1", "--reasoning-parser", "deepseek_r1") as fleet:
        yield OpenAI(base_url=fleet.base_url + "/v1", api_key="unused", max_retries=0)


def ask(client: Any, **fields: Any) -> Any:
    fields = {"temperature": 1.0, "seed": 5, "max_tokens": 200, "tools": [WEATHER, CLOCK], **fields}
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)


def check_weather(arguments: str) -> None:
    found = json.loads(arguments)
    assert list(found) == ["city", "unit", "days"]
    assert len(found["city"]) <= 12 and found["unit"] in ("celsius", "fahrenheit") and 1 <= found["days"] <= 9


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_called_with_arguments_of_its_schema(client: Any, seed: int) -> None:
    choice = ask(client, tool_choice=NAMED, seed=seed).choices[0]

    [call] = choice.message.tool_calls
    assert (call.function.name, choice.finish_reason, choice.message.content) == ("get_weather", "stop", None)
    check_weather(call.function.arguments)


@pytest.mark.parametrize("seed", range(3))
def test_a_required_choice_calls_at_least_one_of_the_tools(client: Any, seed: int) -> None:
    choice = ask(client, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]

    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    if call.function.name == "get_weather":
        check_weather(call.function.arguments)
    else:
        assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {})


def test_the_stream_gathers_to_the_same_call(client: Any) -> None:
    fields: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0}
    [whole] = ask(client, **fields).choices[0].message.tool_calls

    deltas = [call for chunk in ask(client, stream=True, **fields) for call in chunk.choices[0].delta.tool_calls or ()]

    assert deltas[0].id and deltas[0].function.name == whole.function.name and deltas[0].function.arguments == ""
    assert len(deltas) > 2, "arguments come as they are written"
    assert "".join(delta.function.arguments for delta in deltas) == whole.function.arguments


def test_enforced_calls_begin_behind_the_reasoning(thinking_client: Any) -> None:
    fields = {"tool_choice": NAMED, "extra_body": {"thinking_token_budget": 4}}

    message = ask(thinking_client, **fields).choices[0].message

    assert message.reasoning and message.content is None
    [call] = message.tool_calls
    check_weather(call.function.arguments)


def test_a_schema_that_cannot_be_enforced_is_a_400(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}

    with pytest.raises(BadRequestError) as caught:
        ask(client, tools=[tool], tool_choice="required")

    assert caught.value.param == "tools"
