"""The real model, asked by the real `anthropic` client."""

import asyncio
import json

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, TextBlock

from tests.integration.fleet import Fleet

GREEDY = {"temperature": 0}  # gone from the SDK, not from the API
QUESTION: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(core_fleet: Fleet) -> Anthropic:
    return Anthropic(base_url=core_fleet.base_url, api_key="unused", max_retries=0)


def text_of(message: anthropic.types.Message) -> str:
    [block] = message.content
    assert isinstance(block, TextBlock)
    return block.text


def test_a_message_is_answered(client: Anthropic, model: str) -> None:
    message = client.messages.create(model=model, messages=QUESTION, extra_body=GREEDY, max_tokens=32)

    assert "Paris" in text_of(message)
    assert (message.role, message.type, message.model) == ("assistant", "message", model)
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0
    assert message.id == f"msg_{message._request_id}"


def test_the_streaming_helper_gathers_the_same_message(client: Anthropic, model: str) -> None:
    whole = client.messages.create(model=model, messages=QUESTION, extra_body=GREEDY, max_tokens=32)

    with client.messages.stream(model=model, messages=QUESTION, extra_body=GREEDY, max_tokens=32) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == text_of(message) == text_of(whole)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == whole.usage.output_tokens
    used, counted = message.usage, client.messages.count_tokens(model=model, messages=QUESTION).input_tokens
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == counted


def test_events_come_in_anthropics_order(client: Anthropic, model: str) -> None:
    events = client.messages.create(model=model, messages=QUESTION, extra_body=GREEDY, max_tokens=32, stream=True)

    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_system_prefill_and_stop_sequences_work(client: Anthropic, model: str) -> None:
    message = client.messages.create(
        model=model,
        system=[{"type": "text", "text": "You answer in one sentence.", "cache_control": {"type": "ephemeral"}}],
        messages=[*QUESTION, {"role": "assistant", "content": "The capital of France is"}],
        extra_body=GREEDY,
        max_tokens=32,
        stop_sequences=["Par"],
    )

    assert text_of(message) == " "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Par")


def test_a_repeated_conversation_is_read_from_the_cache(client: Anthropic, model: str) -> None:
    long: list[MessageParam] = [{"role": "user", "content": "Sum up this sentence for me, please. " * 20}]
    for _ in range(2):
        message = client.messages.create(model=model, messages=long, max_tokens=1)

    assert message.stop_reason == "max_tokens"
    assert (message.usage.cache_read_input_tokens or 0) >= 64


def test_an_output_format_is_kept(client: Anthropic, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Paris", "Berlin"]}, "is_in_europe": {"type": "boolean"}},
        "required": ["city", "is_in_europe"],
        "additionalProperties": False,
    }

    message = client.messages.create(
        model=model,
        messages=QUESTION,
        max_tokens=32,
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_body=GREEDY,
    )

    assert json.loads(text_of(message)).keys() == {"city", "is_in_europe"}


def test_errors_are_the_clients_own_exceptions(client: Anthropic, model: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nobody", messages=QUESTION, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(model=model, messages=QUESTION, max_tokens=1, extra_body={"temperature": 9})

    assert missing.value.type == "not_found_error"
    assert wrong.value.type == "invalid_request_error" and "temperature" in wrong.value.message


def test_an_async_client_streams_many_at_once(core_fleet: Fleet, model: str) -> None:
    async def one(client: anthropic.AsyncAnthropic, number: int) -> str:
        turns: list[MessageParam] = [{"role": "user", "content": f"Say the number {number}."}]
        async with client.messages.stream(model=model, messages=turns, extra_body=GREEDY, max_tokens=8) as stream:
            return text_of(await stream.get_final_message())

    async def many() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=core_fleet.base_url, api_key="unused", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(16)))

    assert all(asyncio.run(many()))
