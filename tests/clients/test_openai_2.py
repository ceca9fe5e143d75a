"""The openai client of the major version before the one in the `dev` extra: its helpers that read what comes back."""

from typing import Any

import openai
import pytest

if openai.__version__.split(".")[0] != "2":
    pytest.skip("make clients", allow_module_level=True)

from tests.clients.subjects import MESSAGES, MODEL, WEATHER_TOOL, Fruit, Weather

FRUIT: list[Any] = [{"role": "user", "content": "Name a fruit to buy."}]


@pytest.fixture
def client(base_url: str) -> Any:  # Any: overloads of literals
    return openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)


def test_beta_parse_gives_an_object_of_its_class(client: Any) -> None:
    answer = client.beta.chat.completions.parse(model=MODEL, messages=FRUIT, response_format=Fruit, temperature=0)

    assert isinstance(answer.choices[0].message.parsed, Fruit)


def test_parsed_arguments_of_a_tool_are_an_object_of_its_class(client: Any) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False, temperature=0, max_tokens=120,
    )  # fmt: skip

    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)


def test_the_stream_helper_parses_what_has_come_and_the_whole(client: Any) -> None:
    asked = {"model": MODEL, "messages": FRUIT, "response_format": Fruit, "temperature": 0, "max_tokens": 120}
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()

    assert "content.delta" in kinds and kinds.count("content.done") == 1
    assert isinstance(final.choices[0].message.parsed, Fruit)


def test_the_stream_helper_sees_a_tools_arguments(client: Any) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "tools": [WEATHER_TOOL], "temperature": 0, "max_tokens": 120}
    with client.chat.completions.stream(**asked, tool_choice="required", parallel_tool_calls=False) as stream:
        kinds = [event.type for event in stream]

    assert kinds.count("tool_calls.function.arguments.delta") > 1
    assert kinds.count("tool_calls.function.arguments.done") == 1


def test_responses_parse_and_their_stream(client: Any) -> None:
    asked = {"model": MODEL, "input": "Name a fruit to buy.", "text_format": Fruit, "temperature": 0}

    parsed = client.responses.parse(**asked)
    with client.responses.stream(**asked) as stream:
        final = stream.until_done().get_final_response()

    assert isinstance(parsed.output_parsed, Fruit)
    assert final.output_parsed == parsed.output_parsed
