"""Answers held to a form, by the real model, through the openai client."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.integration.fleet import Fleet

MODEL = "SmolLM2-135M-Instruct"
QUESTION: Any = [{"role": "user", "content": "Name a fruit, its colour and how many of them you want."}]


class Fruit(BaseModel):
    name: str
    colour: Literal["red", "yellow", "green"]
    count: int


def ask(client: openai.OpenAI, extra: dict[str, Any], **fields: Any) -> Any:
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 160, "temperature": 0.7, "seed": 5, **fields}
    return client.chat.completions.create(messages=QUESTION, extra_body=extra, **options)


def test_a_pydantic_model_comes_back_parsed(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Fruit, max_tokens=160, temperature=0.0
    )

    fruit = completion.choices[0].message.parsed
    assert isinstance(fruit, Fruit) and completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"choice": ["apple", "banana", "dragon fruit"]}, "apple|banana|dragon fruit"),
        ({"regex": "[A-Z][a-z]{2,8}: [0-9]{1,3}"}, "[A-Z][a-z]{2,8}: [0-9]{1,3}"),
        ({"grammar": 'root ::= item ("," item)*\nitem ::= "red" | "green"'}, "(red|green)(,(red|green))*"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_is_kept_streamed_and_whole(
    client: openai.OpenAI, asked: dict[str, Any], form: str, stream: bool
) -> None:
    answer = ask(client, {"structured_outputs": asked}, stream=stream, n=2, max_tokens=24)

    texts = ["", ""]
    if stream:
        for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = [choice.message.content for choice in answer.choices]
    for text in texts:
        assert re.fullmatch(form, text) or (len(text) > 24 and "grammar" in asked), text


def test_structured_answers_and_plain_ones_share_their_steps_and_nothing_else(client: openai.OpenAI) -> None:
    """Each gives in the crowd what it gives alone."""
    asked: list[dict[str, Any]] = [
        {}, {"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "[0-9]{5}"}},
    ]  # fmt: skip

    def text_of(place: int) -> Any:
        completion = ask(client, asked[place % len(asked)], seed=place, max_tokens=16)
        return completion.choices[0].message.content

    alone = [text_of(place) for place in range(6)]
    with ThreadPoolExecutor(6) as crowd:
        together = list(crowd.map(text_of, range(6)))

    assert together == alone
    assert all(re.fullmatch("[0-9]{5}", text) for text in alone[2::3])
    assert all(text.lstrip().startswith("{") for text in alone[1::3])


@pytest.mark.usefixtures("own_engine")  # those of vLLM are of what the form has left
def test_logprobs_of_a_held_answer_are_the_models_own(client: openai.OpenAI) -> None:
    completion = ask(client, {"structured_outputs": {"choice": ["zebra"]}}, logprobs=True)

    tokens = completion.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith("zebra")
    assert all(token.logprob < 0.0 for token in tokens[:1])


def test_a_schema_that_cannot_be_enforced_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(client, {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}})


@pytest.mark.parametrize("other", [{"ignore_eos": True}, {"min_tokens": 12}])
def test_a_form_that_is_complete_ends_whatever_else_is_asked(client: openai.OpenAI, other: dict[str, Any]) -> None:
    completion = ask(client, {"structured_outputs": {"choice": ["apple", "pear"]}, **other}, max_tokens=16)

    assert completion.choices[0].message.content in ("apple", "pear")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens < 6


def test_what_contradicts_the_form_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="allowed"):
        ask(client, {"structured_outputs": {"choice": ["zebra"]}, "allowed_token_ids": [17, 18]})


def test_the_sim_engine_keeps_the_form_too(sim_fleet: Fleet) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": False}  # fmt: skip
    sim = openai.OpenAI(base_url=f"{sim_fleet.base_url}/v1", api_key="none", max_retries=0)
    completion = ask(sim, {"structured_outputs": {"json": schema}}, model=sim.models.list().data[0].id)

    assert list(json.loads(completion.choices[0].message.content)) == ["ok"]
