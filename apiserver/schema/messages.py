"""Bodies of Anthropic's /v1/messages and /v1/messages/count_tokens as clients send them.

Fields of Anthropic's API and its beta (anthropic SDK 2.12, 2026-11) and vLLM 0.32's extensions. Decoding checks types;
content blocks are checked one by one in apiserver.anthropic.conversation. Marks of what the prefix cache should keep
(`cache_control`) are accepted anywhere: it keeps every prompt.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from apiserver.schema.requests import NoEffect, Unserved, decode_with


class Turn(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]  # Any: JSON, here and below


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: NoEffect = None  # reasoning is always returned, as in vLLM


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ConversationFields(Struct, kw_only=True):
    """What makes the prompt: all that counting tokens needs."""

    messages: list[Turn]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    cache_control: NoEffect = None
    user_profile_id: NoEffect = None
    workspace_id: NoEffect = None
    mm_payload: NoEffect = None
    return_mm_kwargs: NoEffect = None

    compaction: Unserved = None
    container: Unserved = None
    context_management: Unserved = None
    mcp_servers: Unserved = None
    output_format: Unserved = None
    speed: Unserved = None
    thread: Unserved = None


class CountTokensRequest(ConversationFields, kw_only=True):
    pass


class MessagesRequest(ConversationFields, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    cache_salt: str | None = None

    metadata: NoEffect = None
    service_tier: NoEffect = None

    billing_policy: Unserved = None
    diagnostics: Unserved = None
    fallback_credit_token: Unserved = None
    fallbacks: Unserved = None
    inference_geo: Unserved = None
    watermarking: Unserved = None
    kv_transfer_params: Unserved = None
    ec_transfer_params: Unserved = None
    vllm_xargs: Unserved = None


_messages = msgspec.json.Decoder(MessagesRequest)
_count_tokens = msgspec.json.Decoder(CountTokensRequest)


def decode_messages(body: bytes) -> MessagesRequest:
    """Raises InvalidRequest, as its sibling does."""
    return decode_with(_messages, body)


def decode_count_tokens(body: bytes) -> CountTokensRequest:
    return decode_with(_count_tokens, body)
