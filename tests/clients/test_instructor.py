"""instructor: objects of pydantic classes out of the ways of asking that it has for a server like this one.

Not `create_iterable`: the schema that it sends takes an object without any task, and that is what this model answers.
"""

from typing import Any

import openai
import pytest

pytest.importorskip("instructor", reason="make clients")

import instructor

from tests.clients.subjects import MODEL, Fruit

QUESTION = [{"role": "user", "content": "Name a fruit to buy."}]


def client_of(base_url: str, mode: str) -> Any:
    openai_client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    return instructor.from_openai(openai_client, mode=instructor.Mode[mode])


def ask(client: Any, method: str = "create", **fields: Any) -> Any:
    options = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 160, "max_retries": 0, **fields}
    return getattr(client.chat.completions, method)(**options)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_an_object_comes_back_at_the_first_attempt(base_url: str, mode: str) -> None:
    fruit, raw = ask(client_of(base_url, mode), "create_with_completion", response_model=Fruit)

    assert isinstance(fruit, Fruit)
    assert raw.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_a_stream_gives_partial_objects_and_ends_with_the_whole_one(base_url: str, mode: str) -> None:
    parts = list(ask(client_of(base_url, mode), "create_partial", response_model=Fruit))

    Fruit.model_validate(parts[-1].model_dump())
    assert len(parts) > 2


def test_a_refused_request_is_not_hidden_by_retries(base_url: str) -> None:
    with pytest.raises(Exception, match="temperature"):
        ask(client_of(base_url, "JSON_SCHEMA"), response_model=Fruit, temperature=-1)
