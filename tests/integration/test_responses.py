"""/v1/responses by the real `openai` client, of the real model and two workers."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.integration.fleet import Fleet

QUESTION = "What is the capital of France?"
SHORT = {"temperature": 0, "max_output_tokens": 32}


def test_a_response_is_created_and_retrieved(client: Any, model: str) -> None:
    response = client.responses.create(model=model, input=QUESTION, **SHORT)

    assert "Paris" in response.output_text
    assert response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert client.responses.retrieve(response.id) == response


def test_the_streaming_helper_gathers_the_same_response(client: Any, model: str) -> None:
    whole = client.responses.create(model=model, input=QUESTION, **SHORT)

    with client.responses.stream(model=model, input=QUESTION, **SHORT) as stream:
        events = list(stream)
        final = stream.get_final_response()

    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert client.responses.retrieve(final.id).output_text == text


def test_a_conversation_goes_on(client: Any, model: str) -> None:
    first = client.responses.create(model=model, input="My name is Ada. Remember it.", **SHORT)

    second = client.responses.create(model=model, input="What is my name?", previous_response_id=first.id, **SHORT)

    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    turns = [
        {"role": "user", "content": "My name is Ada. Remember it."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    chat = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=32)
    assert second.output_text == chat.choices[0].message.content


def test_logprobs_are_part_of_the_text(client: Any, model: str) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, **SHORT}
    response = client.responses.create(model=model, input=QUESTION, **fields)
    with client.responses.stream(model=model, input=QUESTION, **fields) as stream:
        streamed = stream.get_final_response()

    for answer in (response, streamed):
        logprobs = answer.output[0].content[0].logprobs
        assert "".join(entry.token for entry in logprobs).startswith(answer.output_text)
        assert all(len(entry.top_logprobs) == 2 for entry in logprobs)


class Capital(BaseModel):
    city: Literal["Rome", "Paris", "Berlin"]
    is_in_europe: bool


def test_parse_gives_the_clients_own_type(client: Any, model: str) -> None:
    answer = client.responses.parse(model=model, input=QUESTION, text_format=Capital, **SHORT)
    with client.responses.stream(model=model, input=QUESTION, text_format=Capital, **SHORT) as stream:
        streamed = stream.get_final_response()

    assert isinstance(answer.output_parsed, Capital)
    assert streamed.output_parsed == answer.output_parsed
    assert answer.text.format.type == "json_schema"


def test_errors_are_the_clients_own_exceptions(client: Any, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nobody")
    with pytest.raises(openai.BadRequestError) as missing:
        client.responses.create(model=model, input="go on", previous_response_id="resp_nobody")
    assert missing.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model=model, input="hi", background=True)


# ── a fleet ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def connections(sim_fleet: Fleet) -> Iterator[dict[int, httpx.Client]]:
    """By worker, one connection that stays with it."""
    found: dict[int, httpx.Client] = {}
    spare: list[httpx.Client] = []
    for _ in range(200):
        client = httpx.Client(base_url=sim_fleet.base_url, timeout=30)
        worker = client.get("/livez").json()["worker"]
        if worker in found:
            spare.append(client)
        found.setdefault(worker, client)
        if len(found) == 2:
            break
    yield found
    for client in [*found.values(), *spare]:
        client.close()


def test_every_worker_finds_what_another_stored(connections: dict[int, httpx.Client]) -> None:
    maker, other = connections.values()
    made = maker.post("/v1/responses", json={"input": "one", "max_output_tokens": 8}).json()

    assert other.get(f"/v1/responses/{made['id']}").json() == made
    second = other.post(
        "/v1/responses", json={"input": "two", "previous_response_id": made["id"], "max_output_tokens": 8}
    )
    assert second.status_code == 200
    assert other.delete(f"/v1/responses/{made['id']}").json()["deleted"] is True
    assert maker.get(f"/v1/responses/{made['id']}").status_code == 404
    assert maker.get(f"/v1/responses/{second.json()['id']}").status_code == 200


def test_a_streamed_response_is_stored_before_its_last_event(connections: dict[int, httpx.Client]) -> None:
    maker, other = connections.values()
    body = {"input": "one", "max_output_tokens": 8, "stream": True}

    with maker.stream("POST", "/v1/responses", json=body) as stream:
        for line in stream.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if event.get("type") in ("response.completed", "response.incomplete"):
                answered = event["response"]
                assert other.get(f"/v1/responses/{answered['id']}").json() == answered
                return
    raise AssertionError("the stream never ended")
