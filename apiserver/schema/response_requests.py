"""Bodies of POST /v1/responses as clients send them.

Fields of OpenAI's API (https://platform.openai.com/docs/api-reference/responses, openai SDK 3.54) and vLLM 0.32's
extensions. Decoding checks types; input items are checked one by one in apiserver.responses.conversation.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from apiserver.schema.requests import NoEffect, StreamOptions, Unserved, decode_with
from apiserver.schema.structured import StructuredOutputs


class Reasoning(Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Unserved = None
    generate_summary: Unserved = None
    context: Unserved = None
    mode: Unserved = None


class TextFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None  # Any: JSON, here and below
    strict: bool | None = None
    description: str | None = None


class TextConfig(Struct):
    format: TextFormat | None = None
    verbosity: Unserved = None


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.results",
    "web_search_call.action.sources",
]
"""Beside logprobs: parts of items that no answer has here. Reasoning comes as it is, not encrypted."""


class ResponseRequest(Struct, kw_only=True):
    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    include: list[Includable] | None = None
    top_logprobs: int | None = None
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = "disabled"
    metadata: dict[str, str] | None = None

    # vLLM's
    request_id: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = False
    ignore_eos: bool | None = False
    skip_special_tokens: bool | None = True
    include_reasoning: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int | None = 0
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Accepted, and without effect on the answer: labels, and what counts calls of tools that OpenAI would run.
    max_tool_calls: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: NoEffect = None
    access_programs: NoEffect = None
    session_id: NoEffect = None
    mm_payload: NoEffect = None
    return_mm_kwargs: NoEffect = None

    # Known, and refused unless they ask for nothing.
    background: Unserved = None
    background_options: Unserved = None
    context_management: Unserved = None
    conversation: Unserved = None
    image: Unserved = None
    moderation: Unserved = None
    prompt: Unserved = None
    watermarking: Unserved = None
    media_io_kwargs: Unserved = None
    mm_processor_kwargs: Unserved = None
    enable_response_messages: Unserved = None
    previous_input_messages: Unserved = None
    vllm_xargs: Unserved = None
    kv_transfer_params: Unserved = None
    ec_transfer_params: Unserved = None


_response = msgspec.json.Decoder(ResponseRequest)


def decode_response_request(body: bytes) -> ResponseRequest:
    """Raises InvalidRequest."""
    return decode_with(_response, body)
