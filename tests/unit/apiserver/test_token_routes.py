"""Token ids in and out: what a request renders to, and that generating from it is generating it."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from apiserver.answer_details import AnswerDetails
from apiserver.logprobs import TokenTexts
from apiserver.schema.token_responses import GenerateAnswers
from apiserver.token_choices import StreamedTokens
from config.settings import ServerSettings
from ipc.messages import Generate
from ipc.record import FinishCode, Scored
from tests.unit.apiserver.in_process import SMILE, SPECIAL, NoDecoder, finish, token_table
from tests.unit.apiserver.stream_rig import COMMA, HELLO, JAPAN, WORLD, Server, request, run
from tests.unit.apiserver.worker_rig import (
    MAX_MODEL_LEN,
    TEXT,
    MakeRig,
    WorkerRig,
    error_of,
    events_of,
    make_model_folder,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
THINKING = (  # a template that names both markers
    "{{ messages[0]['content'] }}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)


def render_chat(rig: WorkerRig, content: str = "hi", **fields: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return rig.post("/v1/chat/completions/render", {"messages": messages, **fields}).json()


def generate(rig: WorkerRig, ids: list[int], sampling: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    return rig.post("/inference/v1/generate", {"token_ids": ids, "sampling_params": sampling or {}, **fields})


def sent(request: Generate) -> Generate:
    """Less what makes every request another one."""
    return structs.replace(request, request_id="", stream_id=0)


# ── rendering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rendered_chat_has_the_keys_of_vllms(rig: WorkerRig) -> None:
    body = render_chat(rig, model="tiny", max_tokens=5)

    assert body.keys() == {
        "request_id", "token_ids", "token_offsets", "features", "content_parts", "sampling_params", "model",
        "reasoning_ended", "reasoning_parser_kwargs", "return_token_ids", "output_mode", "stream", "stream_options",
        "cache_salt", "priority", "kv_transfer_params", "ec_transfer_params",
    }  # fmt: skip
    assert rig.text_of(body["token_ids"]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert body["sampling_params"] == {"max_tokens": 5}, "defaults are left out, as in vLLM"
    assert (body["model"], body["request_id"][:9]) == ("tiny", "chatcmpl-")
    assert rig.engine.requests == [], "nothing is generated"


def test_rendered_stream_options_are_vllms_two(rig: WorkerRig) -> None:
    options = {"include_usage": True, "include_stages": True, "include_obfuscation": False}

    assert render_chat(rig, stream=True, stream_options=options)["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": False,
    }
    assert render_chat(rig, stream=True)["stream_options"] is None


def test_every_prompt_of_a_completion_is_rendered(rig: WorkerRig) -> None:
    first, second = rig.post("/v1/completions/render", {"prompt": ["one", "two"], "request_id": "r"}).json()

    assert (first["token_ids"], second["token_ids"]) == (rig.ids_of("one"), rig.ids_of("two"))
    assert (first["request_id"], second["request_id"]) == ("cmpl-r-0", "cmpl-r-1")
    assert first["sampling_params"]["max_tokens"] == 16, "OpenAI's default"


def test_the_models_own_sampling_is_rendered(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "tiny", generation={"temperature": 0.25, "top_k": 7}))

    assert render_chat(rig)["sampling_params"] == {
        "temperature": 0.25, "top_k": 7, "max_tokens": MAX_MODEL_LEN - len(render_chat(rig)["token_ids"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 7, "n": 2},
        {"presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.5, "min_tokens": 1},
        {"stop": ["x", "y"], "include_stop_str_in_output": True, "stop_token_ids": [65], "ignore_eos": True},
        {"logit_bias": {"65": 2.0}, "allowed_token_ids": [65, 66], "logprobs": True, "top_logprobs": 2},
        {"cache_salt": "salt", "priority": 3, "skip_special_tokens": False, "max_tokens": 9},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
        {"structured_outputs": {"regex": "a+"}},
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"structured_outputs": {"grammar": 'root ::= "a"'}},
        {"tools": [TOOL], "tool_choice": "required"},
    ],
)
def test_generating_what_was_rendered_asks_the_engine_for_the_same(rig: WorkerRig, fields: dict[str, Any]) -> None:
    rig.chat(**fields)
    direct, prompts = rig.engine.requests[:], rig.engine.prompts[:]

    response = rig.post("/inference/v1/generate", render_chat(rig, **fields))

    assert response.status_code == 200, response.text
    assert list(map(sent, rig.engine.requests[len(direct) :])) == list(map(sent, direct))
    assert rig.engine.prompts[len(direct) :] == prompts


@pytest.mark.parametrize("enable_thinking", [True, False])
@pytest.mark.parametrize("budget", [None, 5])
def test_reasoning_is_rendered_too(tmp_path: Path, enable_thinking: bool, budget: int | None) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "tiny", template=THINKING))
    fields: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": enable_thinking},
        "response_format": {"type": "json_object"},
        "thinking_token_budget": budget,
    }
    rig.chat(**fields)

    body = render_chat(rig, **fields)
    rig.post("/inference/v1/generate", body)

    assert body["reasoning_ended"] is (None if enable_thinking else True)
    assert body["reasoning_parser_kwargs"] == {"chat_template_kwargs": {"enable_thinking": enable_thinking}}
    direct, rendered = rig.engine.requests
    assert direct.sampling.thinking == rendered.sampling.thinking
    assert (direct.sampling.thinking is None) is not enable_thinking


def test_a_wrong_request_is_refused_as_if_it_were_served(rig: WorkerRig) -> None:
    assert rig.post("/v1/completions/render", {"prompt": "hi", "temperature": 9}).status_code == 400
    assert rig.post("/v1/completions/render", {"prompt": "hi", "model": "none"}).status_code == 404
    assert rig.post("/v1/chat/completions/render", {"messages": []}).status_code == 400
    too_long = rig.post("/v1/completions/render", {"prompt": "hi " * 2 * MAX_MODEL_LEN})
    assert error_of(too_long)["code"] == "context_length_exceeded"


# ── generating ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_come_out_whole_in_vllms_shape(rig: WorkerRig) -> None:
    prompt = rig.ids_of("hello")

    body = generate(rig, prompt, {"temperature": 0}, request_id="r", return_token_ids=True).json()

    assert body.keys() == {
        "request_id", "model", "created", "usage", "prompt_logprobs", "prompt_token_id_logprobs", "prompt_token_ids",
        "mm_placeholders", "metrics", "kv_transfer_params", "ec_transfer_params", "output_mode", "choices",
    }  # fmt: skip
    [choice] = body["choices"]
    assert choice.keys() == {
        "index", "finish_reason", "stop_reason", "token_ids", "routed_experts", "sampling_mask", "weight_versions",
        "logprobs",
    }  # fmt: skip
    assert choice["token_ids"] == rig.ids_of(TEXT)
    assert (body["request_id"], body["prompt_token_ids"], body["model"]) == ("generate-tokens-r", prompt, "tiny")
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"])
    assert not rig.engine.requests[0].is_streaming, "the engine delivers once"


def test_streamed_ids_are_those_of_the_whole_answer(rig: WorkerRig) -> None:
    prompt = rig.ids_of("hello")

    events = events_of(
        generate(rig, prompt, stream=True, stream_options={"include_usage": True}, return_token_ids=True)
    )

    *chunks, usage = events
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [token for choice in choices for token in choice["token_ids"]] == rig.ids_of(TEXT)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [prompt] + [None] * (len(chunks) - 1)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(rig.ids_of(TEXT)))
    assert {chunk["output_mode"] for chunk in events} == {"tokens"}
    assert all("text" not in choice for choice in choices)


@pytest.mark.parametrize("stream_interval", [1, 3])
def test_streamed_ids_may_share_events_and_say_their_usage(stream_interval: int) -> None:
    details = AnswerDetails(has_running_usage=True, stream_interval=stream_interval)
    asked = request(details=details)

    async def client() -> None:
        answers = GenerateAnswers("r", TokenTexts(token_table(), NoDecoder()), [1, 2], has_text=False)
        server = Server(asked, partial(StreamedTokens, details=details), answers)
        connection = await server.connect()
        for token in (HELLO, COMMA, *SMILE, WORLD, JAPAN):
            server.worker.step([1], [token])
            await connection.settle()
        server.worker.step(finishes=[finish(1, FinishCode.STOP, stop_token_id=SPECIAL, num_output_tokens=7)])
        await connection.settle()

        *chunks, done, _ = connection.body.decode().split("\n\n")
        bodies = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
        ids = [body["choices"][0]["token_ids"] for body in bodies]
        if stream_interval == 1:
            assert ids == [[HELLO], [COMMA], [SMILE[0]], [SMILE[1]], [WORLD], [JAPAN], [SPECIAL]]
        else:
            assert ids == [[HELLO], [COMMA, *SMILE], [WORLD, JAPAN, SPECIAL]]
        num_so_far = [sum(map(len, ids[: number + 1])) for number in range(len(ids))]
        assert [body["usage"]["completion_tokens"] for body in bodies] == num_so_far
        assert bodies[0]["usage"]["prompt_tokens"] == 2
        assert done == "data: [DONE]"

    run(client)


def test_running_usage_and_intervals_are_asked_for_as_elsewhere(rig: WorkerRig) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    *chunks, _usage = events_of(
        generate(rig, rig.ids_of("hello"), {"stream_interval": 4}, stream=True, stream_options=options)
    )

    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == len(rig.ids_of(TEXT))


@pytest.mark.parametrize("stream", [False, True])
def test_text_comes_with_the_ids_where_it_is_asked_for(rig: WorkerRig, stream: bool) -> None:
    response = generate(rig, rig.ids_of("hello"), output_mode="text", stream=stream)

    choices = [body["choices"][0] for body in (events_of(response) if stream else [response.json()])]
    assert "".join(choice["text"] for choice in choices) == TEXT
    assert [token for choice in choices for token in choice["token_ids"]] == rig.ids_of(TEXT)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_ids_with_the_token_that_completes_it(rig: WorkerRig, stream: bool) -> None:
    response = generate(rig, rig.ids_of("hello"), {"stop": "wörl"}, stream=stream)

    choices = [body["choices"][0] for body in (events_of(response) if stream else [response.json()])]
    ids = [token for choice in choices for token in choice["token_ids"]]
    assert rig.text_of(ids) == "Hello wörld", "`rld` is one token"
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "wörl")


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_has_its_index_and_its_ids(make_rig: MakeRig, stream: bool) -> None:
    rig = make_rig(lambda message, _prompt: [65, 66 + (message.sampling.seed or 0)])

    response = generate(rig, rig.ids_of("hello"), {"n": 2, "seed": 0}, stream=stream)

    ids: dict[int, list[int]] = {0: [], 1: []}
    for body in events_of(response) if stream else [response.json()]:
        for choice in body["choices"]:
            ids[choice["index"]] += choice["token_ids"]
    assert ids == {0: [65, 66], 1: [65, 67]}


def test_logprobs_are_of_ids_the_one_that_was_drawn_first() -> None:
    scored = Scored(stream=1, token=9, is_stop=False, rank=3, logprob=-3.0, ids=[7, 8], logprobs=[-1.0, -math.inf])

    own = {"token_id": 9, "logprob": -3.0, "rank": 3}
    assert GenerateAnswers("r", TokenTexts(token_table(), NoDecoder()), [], has_text=False).logprobs([scored]) == {
        "content": [{**own, "top_logprobs": [own, {"token_id": 7, "logprob": -1.0, "rank": 1}]}]
    }
    likeliest = structs.replace(scored, token=7, rank=1, logprob=-1.0)
    [entry] = GenerateAnswers("r", TokenTexts(token_table(), NoDecoder()), [], has_text=False).logprobs([likeliest])[
        "content"
    ]
    assert [other["token_id"] for other in entry["top_logprobs"]] == [7, 8]
    assert entry["top_logprobs"][1]["logprob"] == -9999.0, "JSON has no infinity"


def test_the_sampling_of_ids_has_vllms_defaults_and_not_the_models(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "tiny", generation={"temperature": 0.25, "top_k": 7}))

    generate(rig, [65, 66])

    sampling = rig.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (1.0, 0, MAX_MODEL_LEN - 2)


def test_more_tokens_than_fit_are_cut_to_what_fits(rig: WorkerRig) -> None:
    generate(rig, [65, 66], {"max_tokens": 10 * MAX_MODEL_LEN})

    assert rig.engine.requests[0].sampling.max_tokens == MAX_MODEL_LEN - 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": [10**6]}, "token_ids"),
        ({"token_ids": "text"}, "token_ids"),
        ({"features": {"mm_hashes": {}}}, "features"),
        ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params"),
        ({"sampling_params": {"prompt_logprobs": 1}, "stream": True}, "prompt_logprobs"),
        ({"sampling_params": {"prompt_logprob_start": 1}}, "sampling_params.prompt_logprob_start"),
        ({"sampling_params": {"logprob_token_ids": [1]}}, "sampling_params.logprob_token_ids"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"stop": "x", "detokenize": False}}, "sampling_params.detokenize"),
        ({"sampling_params": {"thinking_token_budget": 3}}, "thinking_token_budget"),
        ({"sampling_params": None}, "sampling_params"),
        ({"output_mode": "audio"}, "output_mode"),
        ({"sampling_params": {"stream_interval": "x"}}, "sampling_params.stream_interval"),
        ({"sampling_params": {"bad_words": "x"}}, "sampling_params.bad_words"),
    ],
)
def test_what_cannot_be_generated_is_named(rig: WorkerRig, body: dict[str, Any], param: str) -> None:
    response = rig.post("/inference/v1/generate", {"token_ids": [65], "sampling_params": {}, **body})

    assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_a_prompt_of_ids_that_fills_the_context_is_too_long(rig: WorkerRig) -> None:
    assert error_of(generate(rig, [65] * MAX_MODEL_LEN))["code"] == "context_length_exceeded"


def test_these_routes_ask_for_the_key(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    rig = WorkerRig(folder, server=ServerSettings(api_key=("secret",)))

    for path in ("/v1/chat/completions/render", "/v1/completions/render", "/inference/v1/generate"):
        assert rig.post(path, {}).status_code == 401
