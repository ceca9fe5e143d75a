"""What is remembered of a chat changes nothing: every chat is validated as if it were the first."""

import json
from typing import Any

import pytest

from apiserver.errors import ContextTooLong, InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.schema.request_shapes import MAX_SHAPES, RequestShapes
from apiserver.schema.requests import ChatRequest, decode_chat
from apiserver.schema.validate import generation_request
from config.model_folder import ModelFolder, SamplingDefaults
from config.settings import ServerSettings

MODEL = ModelFolder(
    path="", architecture="", vocab_size=1000, max_model_len=100, eos_token_ids=(2,), bos_token_id=None,
    served_names=("m",), chat_template=None, special_tokens={}, sampling_defaults=SamplingDefaults(top_k=7), hf_config={},
)  # fmt: skip
LIMITS = ServerSettings()

VARIANTS: list[dict[str, Any]] = [
    {}, {"temperature": 0}, {"temperature": 1}, {"temperature": 1.5}, {"top_p": 0.5}, {"top_k": 1}, {"top_k": -1},
    {"min_p": 0.1}, {"presence_penalty": 1}, {"frequency_penalty": 1}, {"repetition_penalty": 1.5}, {"seed": 0},
    {"seed": 1}, {"n": 1}, {"n": 2}, {"max_tokens": 1}, {"max_tokens": 5}, {"max_completion_tokens": 5},
    {"min_tokens": 3}, {"stop": "a"}, {"stop": ["a"]}, {"stop": ["b"]}, {"stop_token_ids": [5]}, {"ignore_eos": True},
    {"include_stop_str_in_output": True}, {"skip_special_tokens": False}, {"stream": True}, {"priority": 1},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": True, "include_stages": True}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream": True, "stream_options": {"include_obfuscation": {"unhashable": []}}},
    {"stream": True, "stream_interval": 2}, {"logit_bias": {"5": 1}}, {"logprobs": True},
    {"logprobs": True, "top_logprobs": 1}, {"logprobs": True, "top_logprobs": 2}, {"allowed_token_ids": [5, 6]},
    {"truncate_prompt_tokens": 3}, {"truncate_prompt_tokens": 3, "truncation_side": "right"}, {"cache_salt": "s"},
    {"return_token_ids": True}, {"prompt_logprobs": 1}, {"logprobs": True, "logprob_token_ids": [5]},
    {"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a+"}}, {"best_of": 1},
]  # fmt: skip
BAD: list[dict[str, Any]] = [
    {"temperature": -1}, {"n": 0}, {"top_logprobs": 2}, {"min_tokens": 200}, {"stream_options": {}}, {"max_tokens": 0},
    {"max_tokens": 1000}, {"best_of": 2},
]  # fmt: skip


def chat(fields: dict[str, Any]) -> ChatRequest:
    return decode_chat(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())


def remembered(shapes: RequestShapes, fields: dict[str, Any], num_tokens: int, request_id: str) -> GenerationRequest:
    prompt = Prompt(bytes(4 * num_tokens))
    return shapes.generation_request(
        chat(fields), (prompt,), request_id=request_id, deadline_s=1.5, output_format=None, counts_reasoning=False
    )


def afresh(fields: dict[str, Any], num_tokens: int, request_id: str) -> GenerationRequest:
    prompt = Prompt(bytes(4 * num_tokens))
    return generation_request(chat(fields), (prompt,), MODEL, LIMITS, request_id=request_id, deadline_s=1.5)


def test_every_parameter_gives_the_same_a_second_time_beside_all_others() -> None:
    shapes = RequestShapes(MODEL, LIMITS)

    for num_tokens, request_id in ((10, "first"), (20, "second"), (10, "third")):
        for fields in VARIANTS:
            ours, whole = remembered(shapes, fields, num_tokens, request_id), afresh(fields, num_tokens, request_id)
            # `max_tokens` of the parameters is set per prompt; both have to come to the same there.
            assert ours.sampling_of(0, 0) == whole.sampling_of(0, 0), fields
            assert [getattr(ours, name) for name in ours.__struct_fields__ if name != "sampling"] == [
                getattr(whole, name) for name in whole.__struct_fields__ if name != "sampling"
            ], fields


@pytest.mark.parametrize("fields", BAD)
def test_what_is_wrong_stays_wrong(fields: dict[str, Any]) -> None:
    shapes = RequestShapes(MODEL, LIMITS)

    for _ in range(2):
        with pytest.raises(InvalidRequest):
            remembered(shapes, fields, 10, "r")


def test_a_longer_prompt_of_a_known_shape_leaves_less_room_or_none() -> None:
    shapes = RequestShapes(MODEL, LIMITS)
    remembered(shapes, {"max_tokens": 50}, 10, "r")

    assert remembered(shapes, {"max_tokens": 50}, 60, "r").max_tokens == (40,)
    with pytest.raises(ContextTooLong):
        remembered(shapes, {"max_tokens": 50}, 100, "r")


def test_any_number_of_shapes_may_come() -> None:
    shapes = RequestShapes(MODEL, LIMITS)

    for seed in range(2 * MAX_SHAPES + 1):
        assert remembered(shapes, {"seed": seed}, 10, "r").sampling.seed == seed
