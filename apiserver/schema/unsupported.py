"""Fields that clients of OpenAI or vLLM may send and that are not served here: refused by name, never ignored.

A value that asks for nothing (vLLM's or OpenAI's default) is accepted.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.embeddings import EmbeddingRequest
from apiserver.schema.messages import CountTokensRequest, MessagesRequest
from apiserver.schema.requests import (
    BatchChatRequest,
    ChatRequest,
    CompletionRequest,
    Message,
    SamplingFields,
    TokenizeRequest,
)
from apiserver.schema.response_requests import Reasoning, ResponseRequest, TextConfig
from apiserver.schema.token_requests import GenerateRequest, TokenSampling

ANY_NULL: tuple[Any, ...] = (None,)  # Any: JSON values, here and below
FALSE: tuple[Any, ...] = (None, False)
EMPTY: tuple[Any, ...] = (None, [], {}, "")

SHARED: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": FALSE,
    "length_penalty": (None, 1.0),
    "ec_transfer_params": EMPTY,
    "vllm_xargs": EMPTY,
    "logits_processors": EMPTY,
    "routed_experts_prompt_start": (None, 0),
    "prompt_embeds": ANY_NULL,
    "repetition_detection": ANY_NULL,
    "watermarking": FALSE,
    "return_weight_versions": FALSE,
}
CHAT: Mapping[str, tuple[Any, ...]] = {
    **SHARED,
    "echo": FALSE,
    "functions": EMPTY,
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    "audio": ANY_NULL,
    "prediction": ANY_NULL,
    "web_search_options": ANY_NULL,
    "verbosity": (None, "medium"),
    "media_io_kwargs": EMPTY,
    "mm_processor_kwargs": EMPTY,
    "return_prompt_text": FALSE,
}
BATCH: Mapping[str, tuple[Any, ...]] = {
    **CHAT,
    "stream": FALSE,
    "n": (None, 1),
    "tools": EMPTY,
    "tool_choice": (None, "none"),
    "prompt_logprobs": ANY_NULL,
    "kv_transfer_params": EMPTY,  # of one prompt
}
COMPLETION: Mapping[str, tuple[Any, ...]] = {
    **SHARED,
    "top_logprobs": (None, 0),
    "suffix": EMPTY,
    "thinking_token_budget": (None, -1),
}
TOKENIZE: Mapping[str, tuple[Any, ...]] = {
    "media_io_kwargs": EMPTY,
    "mm_processor_kwargs": EMPTY,
}
COUNT_TOKENS: Mapping[str, tuple[Any, ...]] = {
    "compaction": ANY_NULL,
    "container": ANY_NULL,
    "context_management": EMPTY,
    "mcp_servers": EMPTY,
    "output_format": ANY_NULL,
    "speed": (None, "standard"),
    "thread": ANY_NULL,
}
MESSAGES: Mapping[str, tuple[Any, ...]] = {
    **COUNT_TOKENS,
    "billing_policy": ANY_NULL,
    "diagnostics": ANY_NULL,
    "fallback_credit_token": ANY_NULL,
    "fallbacks": EMPTY,
    "inference_geo": ANY_NULL,
    "watermarking": FALSE,
    "kv_transfer_params": EMPTY,
    "ec_transfer_params": EMPTY,
    "vllm_xargs": EMPTY,
}
RESPONSE: Mapping[str, tuple[Any, ...]] = {
    "background": FALSE,
    "background_options": ANY_NULL,
    "context_management": EMPTY,
    "conversation": ANY_NULL,
    "image": ANY_NULL,
    "moderation": ANY_NULL,
    "prompt": ANY_NULL,
    "watermarking": FALSE,
    "media_io_kwargs": EMPTY,
    "mm_processor_kwargs": EMPTY,
    "enable_response_messages": FALSE,
    "previous_input_messages": EMPTY,
    "vllm_xargs": EMPTY,
    "kv_transfer_params": EMPTY,
    "ec_transfer_params": EMPTY,
}
REASONING: Mapping[str, tuple[Any, ...]] = {
    "summary": (None, "auto"),  # auto: as the model does, which writes none
    "generate_summary": (None, "auto"),
    "context": (None, "auto"),
    "mode": (None, "standard"),
}
EMBEDDING: Mapping[str, tuple[Any, ...]] = {
    "messages": ANY_NULL,
    "normalize": ANY_NULL,  # vLLM took it away: use_activation
    "padding": (None, "do_not_pad"),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "chat_template": ANY_NULL,
    "chat_template_kwargs": EMPTY,
    "mm_processor_kwargs": EMPTY,
}
GENERATE: Mapping[str, tuple[Any, ...]] = {
    "features": ANY_NULL,
    "content_parts": EMPTY,
    "ec_transfer_params": EMPTY,
}
TOKEN_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "prompt_logprob_token_ids": EMPTY,
    "prompt_logprob_start": ANY_NULL,
    "logprob_token_ids": EMPTY,
    "extra_args": EMPTY,
    "repetition_detection": ANY_NULL,
    "routed_experts_prompt_start": (None, 0),
    "skip_reading_prefix_cache": FALSE,
    "trace_decode_token_ids": EMPTY,
    "watermarking": FALSE,
}
TEXT: Mapping[str, tuple[Any, ...]] = {"verbosity": (None, "medium")}
MESSAGE: Mapping[str, tuple[Any, ...]] = {"refusal": EMPTY, "audio": EMPTY, "function_call": ANY_NULL}

TABLES: Mapping[type[Struct], Mapping[str, tuple[Any, ...]]] = {
    ChatRequest: CHAT,
    BatchChatRequest: BATCH,
    CompletionRequest: COMPLETION,
    TokenizeRequest: TOKENIZE,
    MessagesRequest: MESSAGES,
    CountTokensRequest: COUNT_TOKENS,
    ResponseRequest: RESPONSE,
    Reasoning: REASONING,
    TextConfig: TEXT,
    EmbeddingRequest: EMBEDDING,
    GenerateRequest: GENERATE,
    TokenSampling: TOKEN_SAMPLING,
    Message: MESSAGE,
}


def _values_of(names: Iterable[str]) -> Callable[[Struct], tuple[Any, ...]]:
    """As `attrgetter`, which gives a bare value for a single name."""
    first, *others = names
    if others:
        return attrgetter(first, *others)
    return lambda part: (getattr(part, first),)


_VALUES_OF = {kind: _values_of(table) for kind, table in TABLES.items()}
_NOTHING = {kind: (None,) * len(table) for kind, table in TABLES.items()}


Part = (
    SamplingFields
    | TokenizeRequest
    | Message
    | MessagesRequest
    | CountTokensRequest
    | ResponseRequest
    | Reasoning
    | TextConfig
    | EmbeddingRequest
    | GenerateRequest
    | TokenSampling
)


def refuse_unsupported(part: Part, path: str = "") -> None:
    """Raises InvalidRequest that names the first such field; `path` is where `part` stands in the body, with its dot."""
    kind = type(part)
    values = _VALUES_OF[kind](part)
    if values == _NOTHING[kind]:  # nearly always
        return
    for (name, accepted), value in zip(TABLES[kind].items(), values, strict=True):
        if value is not None and not _is_among(value, accepted):
            raise InvalidRequest(f"{path}{name} is not supported by this server", param=path + name)


def _is_among(value: Any, accepted: tuple[Any, ...]) -> bool:
    """Equal and of the same JSON kind: 0 is not false."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in accepted)
