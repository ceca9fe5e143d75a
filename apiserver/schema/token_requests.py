"""The body of POST /inference/v1/generate: token ids in, sampling parameters under vLLM's own names (0.33, SamplingParams).

Its sampling parameters are those of a completion whose prompt is token ids, so they become one, and are checked as one. Where
they are silent the model's generation_config.json is not asked: who sends ids has rendered them, defaults and all.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import CompletionRequest, NoEffect, StreamOptions, Unserved, decode_with
from apiserver.schema.structured import StructuredOutputs


class TokenSampling(Struct, kw_only=True):
    """vLLM's SamplingParams as JSON, with its defaults; but without `max_tokens` as many as fit are generated, as in vLLM."""

    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = False
    ignore_eos: bool | None = False
    max_tokens: int | None = None
    min_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = True
    spaces_between_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    stream_interval: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None

    detokenize: bool | None = True
    thinking_token_budget: int | None = None

    flat_logprobs: NoEffect = None
    output_kind: NoEffect = None
    skip_clone: NoEffect = None

    prompt_logprob_token_ids: Unserved = None
    prompt_logprob_start: Unserved = None
    logprob_token_ids: Unserved = None
    extra_args: Unserved = None
    repetition_detection: Unserved = None
    routed_experts_prompt_start: Unserved = None
    skip_reading_prefix_cache: Unserved = None
    trace_decode_token_ids: Unserved = None
    watermarking: Unserved = None


_OWN = {"max_tokens", "logprob_token_ids", "repetition_detection", "routed_experts_prompt_start"}
_OWN |= {"thinking_token_budget", "watermarking"}
_OF_COMPLETIONS = set(TokenSampling.__struct_fields__) & set(CompletionRequest.__struct_fields__) - _OWN


class ReasoningParserKwargs(Struct):
    chat_template_kwargs: dict[str, Any] = {}


class GenerateRequest(Struct, kw_only=True):
    """As the render routes answer, and as clients put it together themselves."""

    token_ids: list[int]
    sampling_params: TokenSampling
    model: str | None = None
    request_id: str | None = None
    output_mode: Literal["tokens", "text"] = "tokens"
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None  # of the prompt, in the answer
    cache_salt: str | None = None
    priority: int | None = 0
    reasoning_ended: bool | None = None  # None: the prompt is looked at
    reasoning_parser_kwargs: ReasoningParserKwargs | None = None
    kv_transfer_params: dict[str, Any] | None = None  # Any: for vLLM's KV connector, as it is

    token_offsets: NoEffect = None

    features: Unserved = None
    content_parts: Unserved = None
    ec_transfer_params: Unserved = None


_decoder = msgspec.json.Decoder(GenerateRequest)


def decode_generate(body: bytes) -> GenerateRequest:
    """Raises InvalidRequest."""
    request = decode_with(_decoder, body)
    sampling = request.sampling_params
    if sampling.detokenize is False and (sampling.stop or request.output_mode == "text"):
        raise InvalidRequest(
            "stop strings and output_mode text need sampling_params.detokenize", param="sampling_params.detokenize"
        )
    return request


def completion_of(request: GenerateRequest, max_model_len: int) -> CompletionRequest:
    """The same as a completion. As in vLLM `max_tokens` is cut to what fits behind the prompt."""
    sampling = request.sampling_params
    room = max(max_model_len - len(request.token_ids), 1)
    return CompletionRequest(
        prompt=[*request.token_ids],
        max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
        stream=request.stream,
        stream_options=request.stream_options if request.stream else None,
        request_id=request.request_id,
        cache_salt=request.cache_salt,
        kv_transfer_params=request.kv_transfer_params,
        priority=request.priority,
        **{name: getattr(sampling, name) for name in _OF_COMPLETIONS},
    )
