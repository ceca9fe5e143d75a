"""Fields that clients of OpenAI or vLLM may send and that are not served here: refused by name, never ignored.

A value that asks for nothing (vLLM's or OpenAI's default) is accepted.
"""

from collections.abc import Mapping
from typing import Any

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import ChatRequest, CompletionRequest

NOTHING: tuple[Any, ...] = (None,)  # Any: JSON values
FALSE: tuple[Any, ...] = (None, False)
EMPTY: tuple[Any, ...] = (None, [], {}, "")
TEXT_FORMATS: tuple[Any, ...] = (None, {"type": "text"})

SHARED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": FALSE,
    "top_logprobs": (None, 0),
    "prompt_logprobs": NOTHING,
    "echo": FALSE,
    "best_of": (None, 1),
    "use_beam_search": FALSE,
    "length_penalty": (None, 1.0),
    "allowed_token_ids": EMPTY,
    "bad_words": EMPTY,
    "truncate_prompt_tokens": NOTHING,
    "spaces_between_special_tokens": (None, True),
    "response_format": TEXT_FORMATS,
    "structured_outputs": NOTHING,
    "guided_json": NOTHING,
    "guided_regex": NOTHING,
    "guided_choice": NOTHING,
    "guided_grammar": NOTHING,
    "stream_interval": (None, 1),
    "cache_salt": NOTHING,
    "kv_transfer_params": EMPTY,
    "vllm_xargs": EMPTY,
    "logits_processors": EMPTY,
    "logprob_token_ids": EMPTY,
    "return_token_ids": FALSE,
    "return_tokens_as_token_ids": FALSE,
    "prompt_embeds": NOTHING,
    "repetition_detection": NOTHING,
    "watermarking": FALSE,
}
CHAT: Mapping[str, tuple[Any, ...]] = {
    **SHARED,
    "chat_template": NOTHING,
    "tools": EMPTY,
    "tool_choice": (None, "none", "auto"),
    "functions": EMPTY,
    "function_call": (None, "none"),
    "parallel_tool_calls": (None, True, False),  # speaks of tools only, and those are refused
    "include_reasoning": (None, True),
    "thinking_token_budget": NOTHING,
    "modalities": (None, ["text"]),
    "audio": NOTHING,
    "prediction": NOTHING,
    "web_search_options": NOTHING,
    "verbosity": (None, "medium"),
    "media_io_kwargs": EMPTY,
    "mm_processor_kwargs": EMPTY,
}
COMPLETION: Mapping[str, tuple[Any, ...]] = {**SHARED, "suffix": EMPTY}


def refuse_unsupported(request: ChatRequest | CompletionRequest) -> None:
    """Raises InvalidRequest that names the first such field."""
    for name, accepted in (CHAT if isinstance(request, ChatRequest) else COMPLETION).items():
        value = getattr(request, name)
        if value is not None and value not in accepted:
            raise InvalidRequest(f"{name} is not supported by this server", param=name)
