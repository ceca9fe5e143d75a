"""Reasoning through a real fleet: the embedded model, told to think, is stopped by its budget; its words are split by the
`openai` client's own reading of the stream."""

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.integration.fleet import Fleet

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # Any: fields that the client does not know
    log = tmp_path_factory.mktemp("reasoning") / "fleet.log"
    flags = (
        "--workers",
        "1",
        "--reasoning-parser",
        "deepseek_r1",
        "--no-enable-prefix-caching",
    )  # in bf16 a hit may round
    with Fleet(log, *flags) as fleet:
        yield OpenAI(base_url=fleet.base_url + "/v1", api_key="unused", max_retries=0)


def ask(client: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        model="SmolLM2-135M-Instruct", messages=CHAT, temperature=0, max_tokens=24, **fields
    )


def test_a_model_that_never_stops_thinking_is_stopped_by_its_budget(client: Any) -> None:
    answer = ask(client, extra_body={"thinking_token_budget": 3})

    message = answer.choices[0].message
    assert message.reasoning == "The capital of" and message.reasoning_content == message.reasoning
    assert message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens == 3


def test_the_stream_says_the_same(client: Any) -> None:
    fields = {"extra_body": {"thinking_token_budget": 3}}
    message = ask(client, **fields).choices[0].message

    deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True, **fields)]

    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
    assert "".join(delta.content or "" for delta in deltas) == message.content


def test_without_a_budget_it_thinks_to_the_end(client: Any) -> None:
    message = ask(client).choices[0].message

    assert "Paris" in message.reasoning and message.content is None
