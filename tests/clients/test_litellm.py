"""LiteLLM, as a client of an OpenAI-compatible server and as one of vLLM."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("litellm", reason="make clients")

import litellm

from tests.clients.subjects import MESSAGES, MODEL, WEATHER_TOOL, Fruit, Weather

NAMED = {"type": "function", "function": {"name": "Weather"}}


@pytest.fixture(params=["openai", "hosted_vllm"])
def target(request: pytest.FixtureRequest, base_url: str) -> dict[str, Any]:
    """Which of LiteLLM's providers, and where."""
    return {"model": f"{request.param}/{MODEL}", "api_base": base_url, "api_key": "unused", "num_retries": 0}


def ask(target: dict[str, Any], **fields: Any) -> Any:
    return litellm.completion(**{**target, "messages": MESSAGES, "temperature": 0, "max_tokens": 120, **fields})


def test_a_chat_answers_with_usage(target: dict[str, Any]) -> None:
    answer = ask(target)

    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_a_stream_is_the_same_text_and_can_be_rebuilt(target: dict[str, Any]) -> None:
    chunks = list(ask(target, stream=True, stream_options={"include_usage": True}))

    whole = ask(target)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


def test_an_asynchronous_stream_ends_with_its_reason(target: dict[str, Any]) -> None:
    async def reasons() -> list[str]:
        stream = await litellm.acompletion(**target, messages=MESSAGES, max_tokens=4, stream=True)
        return [c.choices[0].finish_reason async for c in stream if c.choices[0].finish_reason]

    assert asyncio.run(reasons()) == ["length"]


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_with_arguments_that_fit(target: dict[str, Any], tool_choice: Any, stream: bool) -> None:
    """There may be others beside them: for vLLM LiteLLM takes additionalProperties out of the tool's schema."""
    asked = {"tools": [WEATHER_TOOL], "tool_choice": tool_choice, "parallel_tool_calls": False}

    answer = ask(target, **asked, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=MESSAGES)

    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "Weather"
    arguments = json.loads(call.function.arguments)
    Weather.model_validate({name: arguments[name] for name in Weather.model_fields})


def test_structured_output_of_a_class_and_of_a_schema(target: dict[str, Any]) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": Fruit.model_json_schema()}}

    for response_format in (Fruit, schema):
        answer = ask(target, response_format=response_format)
        Fruit.model_validate_json(answer.choices[0].message.content)


def test_vllms_own_fields_pass_through(base_url: str) -> None:
    answer = litellm.completion(
        model=f"hosted_vllm/{MODEL}", api_base=base_url, api_key="unused", messages=MESSAGES,
        extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}},
    )  # fmt: skip

    assert answer.choices[0].message.content in ("Paris", "Rome")


def test_completions_embeddings_and_responses(base_url: str) -> None:
    target = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "unused"}

    completion = litellm.text_completion(
        **{**target, "model": f"text-completion-openai/{MODEL}"},
        prompt="The capital of France is",
        max_tokens=8,
        temperature=0,
    )
    embedding = litellm.embedding(**target, input=["a cat", "a dog"])
    response = litellm.responses(**target, input="What is the capital of France?", temperature=0, max_output_tokens=40)

    assert "Paris" in completion.choices[0].text
    assert len(embedding.data) == 2 and embedding.data[0]["embedding"] != embedding.data[1]["embedding"]
    assert "Paris" in json.dumps(response.model_dump()["output"])


def test_anthropics_messages_are_answered(fleet: Any) -> None:
    answer = litellm.completion(
        model=f"anthropic/{MODEL}",
        api_base=fleet.base_url,
        api_key="unused",
        messages=MESSAGES,
        temperature=0,
        max_tokens=40,
    )

    assert "Paris" in answer.choices[0].message.content


def test_refusals_are_the_exceptions_of_their_kind(target: dict[str, Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask(target, temperature=-1)
    with pytest.raises(litellm.NotFoundError, match="no-such-model"):
        ask({**target, "model": target["model"].replace(MODEL, "no-such-model")})
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(target, messages=[{"role": "user", "content": "word " * 9000}])
