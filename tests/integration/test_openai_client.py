"""The real model behind the real architecture, asked by the real `openai` client."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.integration.fleet import Fleet

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def streamed_text(client: Any, model: str, **request: object) -> str:
    stream = client.chat.completions.create(model=model, stream=True, **request)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_chat_answers(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=32)

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_is_the_same_text_and_ends_with_usage(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=CHAT, temperature=0, max_tokens=32)

    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=CHAT,
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_repeated_prompt_is_reported_as_cached(client: Any, model: str) -> None:
    messages = [{"role": "user", "content": "Count the words of this sentence, please. " * 20}]
    for _ in range(2):
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=1)

    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    assert answer.usage.prompt_tokens_details.cached_tokens >= 64


def test_completion_takes_text_lists_and_ids(client: Any, model: str, core_fleet: Fleet) -> None:
    ids = httpx.post(core_fleet.base_url + "/tokenize", json={"model": model, "prompt": "Once upon a time"}).json()[
        "tokens"
    ]

    texts = [
        client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=8).choices
        for prompt in ("Once upon a time", ["Once upon a time", "One, two,"], ids, [ids, ids])
    ]

    assert [len(choices) for choices in texts] == [1, 2, 1, 2]
    assert len({choices[0].text for choices in texts}) == 1
    assert texts[1][1].text != texts[1][0].text


def test_n_choices_share_one_response_and_differ_by_sampling(client: Any, model: str) -> None:
    request = {"model": model, "messages": CHAT, "n": 3, "temperature": 1.5, "max_tokens": 24, "seed": 7}
    first = client.chat.completions.create(**request)
    again = client.chat.completions.create(**request)

    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1, "one seed per choice, derived from the request's"
    assert texts == [choice.message.content for choice in again.choices]


def test_n_streams_interleave_with_their_index(client: Any, model: str) -> None:
    parts = {0: "", 1: "", 2: ""}
    finishes = []
    stream = client.chat.completions.create(
        model=model,
        messages=CHAT,
        n=3,
        temperature=0,
        max_tokens=12,
        stream=True,
    )
    for chunk in stream:
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
            finishes += [choice.index] if choice.finish_reason else []

    assert sorted(finishes) == [0, 1, 2]
    assert parts[0] == parts[1] == parts[2] != ""


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_that_straddles_tokens(client: Any, model: str, include: bool, stream: bool) -> None:
    whole = streamed_text(client, model, messages=CHAT, temperature=0, max_tokens=32)
    stop = whole[whole.index("capital") + 3 : whole.index("capital") + 11]  # "ital of " or the like

    request = {"messages": CHAT, "temperature": 0, "max_tokens": 32, "stop": stop}
    extra = {"extra_body": {"include_stop_str_in_output": include}}
    if stream:
        text = streamed_text(client, model, **request, **extra)
    else:
        answer = client.chat.completions.create(model=model, **request, **extra)
        assert answer.choices[0].finish_reason == "stop"
        text = answer.choices[0].message.content

    end = whole.index(stop) + (len(stop) if include else 0)
    assert text == whole[:end]


@pytest.mark.parametrize("prompt", ["😀" * 10, "The emoji are: " + "🙂" * 8, "日本語" * 5])
def test_characters_are_never_split_between_chunks(client: Any, model: str, prompt: str) -> None:
    """SmolLM2 spells each of these characters with several tokens, and goes on repeating them."""
    stream = client.completions.create(
        model=model, prompt=prompt, temperature=0, max_tokens=30, stream=True, extra_body={"ignore_eos": True}
    )
    pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]

    assert "".join(pieces).count(prompt[-1]) >= 5
    assert all("\ufffd" not in piece for piece in pieces)


def test_200_concurrent_streams_all_complete_and_are_right(core_fleet: Fleet, model: str) -> None:
    prompts = [f"{number} plus {number} is" for number in range(40)]

    async def ask(client: AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=12, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    async def ask_all(copies: int) -> list[str]:
        async with AsyncOpenAI(base_url=core_fleet.base_url + "/v1", api_key="x", max_retries=0) as client:
            return list(await asyncio.gather(*(ask(client, prompt) for prompt in prompts * copies)))

    one_by_one = [asyncio.run(ask_alone(core_fleet, model, prompt)) for prompt in prompts[:10]]
    crowd = asyncio.run(ask_all(5))

    assert len(crowd) == 200
    assert crowd[:10] == one_by_one
    assert all(crowd[number] == crowd[number % 40] for number in range(200))


async def ask_alone(fleet: Fleet, model: str, prompt: str) -> str:
    async with AsyncOpenAI(base_url=fleet.base_url + "/v1", api_key="x", max_retries=0) as client:
        answer = await client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=12)
        return answer.choices[0].text


def test_seeded_sampling_is_the_same_alone_and_in_a_crowd(core_fleet: Fleet, model: str) -> None:
    async def sample(client: AsyncOpenAI, seed: int) -> str:
        answer = await client.completions.create(
            model=model, prompt="The weather today", temperature=0.9, top_p=0.95, max_tokens=16, seed=seed
        )
        return answer.choices[0].text

    async def gather(seeds: list[int]) -> list[str]:
        async with AsyncOpenAI(base_url=core_fleet.base_url + "/v1", api_key="x", max_retries=0) as client:
            return list(await asyncio.gather(*(sample(client, seed) for seed in seeds)))

    alone = asyncio.run(gather([42]))
    crowd = asyncio.run(gather([*range(1000, 1015), 42]))

    assert crowd[-1] == alone[0]
    assert len(set(crowd)) > 10


def test_errors_are_openai_errors(client: Any, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=model, messages=CHAT, temperature=-1)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="word " * 9000)
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in caught.value.message


UGLY_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"model": "MODEL"}',
    b'{"model": "MODEL", "messages": []}',
    b'{"model": "MODEL", "messages": "hi"}',
    b'{"model": "MODEL", "messages": [{"role": null, "content": "hi"}]}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": 7}]}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "max_tokens": -1}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1e300}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "temperature": "hot"}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "top_p": 7}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "n": 0}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "n": 99999999}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "logit_bias": {"x": 1}}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "stop": [""]}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"model": "MODEL", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
]


@pytest.mark.parametrize("body", UGLY_BODIES, ids=range(len(UGLY_BODIES)))
def test_ugly_input_is_a_clear_400(core_fleet: Fleet, model: str, body: bytes) -> None:
    response = httpx.post(
        core_fleet.base_url + "/v1/chat/completions",
        content=body.replace(b"MODEL", model.encode()),
        headers={"content-type": "application/json"},
    )

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"] and error["type"] == "invalid_request_error"


def test_limits_of_http_are_answered_in_kind(core_fleet: Fleet, model: str) -> None:
    url = core_fleet.base_url
    huge = b'{"model": "%s", "prompt": "%s"}' % (model.encode(), b"x" * 40_000_000)

    assert httpx.post(url + "/v1/completions", content=huge, timeout=60).status_code == 413
    assert httpx.get(url + "/v1/nowhere").status_code == 404
    assert "/v1/nowhere" in httpx.get(url + "/v1/nowhere").json()["error"]["message"]
    assert httpx.get(url + "/v1/chat/completions").status_code == 405
    echoed = httpx.get(url + "/v1/models", headers={"x-request-id": "my-id-7"})
    assert echoed.headers["x-request-id"] == "my-id-7"


def test_metrics_are_vllms_and_add_up(core_fleet: Fleet, client: Any, model: str) -> None:
    before = metric(core_fleet, "vllm:generation_tokens_total")
    client.completions.create(model=model, prompt="One, two,", max_tokens=5, extra_body={"ignore_eos": True})

    assert metric(core_fleet, "vllm:generation_tokens_total") == before + 5
    core_fleet.wait_until(
        lambda: metric(core_fleet, "vllm:num_requests_running") == 0, 5
    )  # looked at a few times a second
    on_ops_port = httpx.get(core_fleet.ops_url + "/metrics").text
    assert "vllm:time_to_first_token_seconds_bucket" in on_ops_port
    assert "vllm:kv_cache_usage_perc" in on_ops_port


def metric(fleet: Fleet, name: str) -> float:
    lines = httpx.get(fleet.base_url + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0] == name)


def test_disconnects_free_the_engine_for_streams_and_others(core_fleet: Fleet, model: str) -> None:
    body = {"model": model, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}

    with httpx.stream("POST", core_fleet.base_url + "/v1/completions", json={**body, "stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(core_fleet.base_url + "/v1/completions", json=body, timeout=1)

    core_fleet.wait_until(lambda: metric(core_fleet, "vllm:num_requests_running") == 0, timeout_s=10)


def test_raw_events_are_well_formed(core_fleet: Fleet, model: str) -> None:
    body = {"model": model, "messages": CHAT, "max_tokens": 8, "stream": True}
    with httpx.stream("POST", core_fleet.base_url + "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]

    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_logprobs_of_a_chat_are_the_same_streamed_and_whole(client: Any, model: str) -> None:
    asked = {"model": model, "messages": CHAT, "temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}

    whole = client.chat.completions.create(**asked)
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]

    entries = whole.choices[0].logprobs.content
    assert [(entry.token, entry.bytes) for entry in entries] == [(entry.token, entry.bytes) for entry in streamed]
    assert [entry.logprob for entry in entries] == pytest.approx([entry.logprob for entry in streamed], abs=1e-3)
    assert len(entries) == whole.usage.completion_tokens
    assert "".join(entry.token for entry in entries).startswith(whole.choices[0].message.content)
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy draws the likeliest"
        assert 0 >= entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob >= entry.top_logprobs[2].logprob


def test_logprobs_of_a_completion_have_offsets_into_its_text(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="The capital of France is", temperature=1.0, seed=3, max_tokens=8, logprobs=2, n=2
    )

    for choice in answer.choices:
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
        for token, offset, own, alternatives in zip(
            logprobs.tokens, logprobs.text_offset, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            assert choice.text[offset:].startswith(token)
            assert alternatives[token] == own and 2 <= len(alternatives) <= 3


def test_logprobs_that_cannot_be_given_are_refused(client: Any, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat.completions.create(model=model, messages=CHAT, top_logprobs=2)
    with pytest.raises(openai.BadRequestError, match="between 0 and 20"):
        client.completions.create(model=model, prompt="x", logprobs=21)


def test_only_requests_of_the_same_cache_salt_share_their_prefix(client: Any, model: str) -> None:
    prompt = (
        "A long prompt that fills several blocks of the cache, word by word, until there is something to share. " * 3
    )

    def num_cached(salt: str) -> int:
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=1, temperature=0, extra_body={"cache_salt": salt}
        )
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert (num_cached("one"), num_cached("two")) == (0, 0)
    assert num_cached("one") > 0


def test_nothing_but_the_allowed_tokens_is_generated(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model,
        prompt="Count:",
        max_tokens=9,
        logprobs=0,
        extra_body={"allowed_token_ids": [33, 34], "ignore_eos": True},
    )

    tokens = answer.choices[0].logprobs.tokens
    assert len(tokens) == 9 and len(set(tokens)) <= 2
