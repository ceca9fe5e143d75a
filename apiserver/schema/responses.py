"""Response bodies and stream events as clients read them: chat and completion, whole and in chunks.

Chunks are not built per token: a stream's event is made once, with a mark where the text goes, and cut there.
"""

import time
from typing import Any

import msgspec

from apiserver.generation import CollectedChoice, Usage

TEXT_MARK = "\ue000tokenfleet text\ue000"  # private use: no model name or id holds it
_encode = msgspec.json.encode


def usage_object(usage: Usage) -> dict[str, Any]:  # Any: JSON
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + _encode(content) + b"\n\n"


def _cut(content: dict[str, Any]) -> tuple[bytes, bytes]:
    """The halves of an event around its text."""
    prefix, suffix = event(content).split(_encode(TEXT_MARK)[1:-1])
    return prefix, suffix


class ChatEvents:
    """Events of one streamed chat: apiserver.event_stream.Events."""

    def __init__(self, response_id: str, model: str) -> None:
        self._base: dict[str, Any] = {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> bytes:
        return event(self._chunk(index, {"role": "assistant", "content": ""}))

    def delta(self, index: int) -> tuple[bytes, bytes]:
        return _cut(self._chunk(index, {"content": TEXT_MARK}))

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        return event(self._chunk(index, {}, finish_reason, stop_reason))

    def usage(self, usage: Usage) -> bytes:
        return event({**self._base, "choices": [], "usage": usage_object(usage)})

    def _chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, stop_reason: str | int | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = stop_reason
        return {**self._base, "choices": [choice]}


class CompletionEvents:
    """Events of one streamed completion."""

    def __init__(self, response_id: str, model: str) -> None:
        self._base: dict[str, Any] = {
            "id": response_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, _index: int) -> bytes:
        return b""

    def delta(self, index: int) -> tuple[bytes, bytes]:
        return _cut(self._chunk(index, TEXT_MARK))

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        return event(self._chunk(index, "", finish_reason, stop_reason))

    def usage(self, usage: Usage) -> bytes:
        return event({**self._base, "choices": [], "usage": usage_object(usage)})

    def _chunk(
        self, index: int, text: str, finish_reason: str | None = None, stop_reason: str | int | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
        return {**self._base, "choices": [choice]}


def chat_body(response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
    rows = [
        {**_choice(choice), "message": {"role": "assistant", "content": choice.content, **_MESSAGE}}
        for choice in choices
    ]
    return _encode({**_base(response_id, "chat.completion", model, rows, usage), **_CHAT})


def completion_body(response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
    rows = [{**_choice(choice), "text": choice.content, **_COMPLETION_CHOICE} for choice in choices]
    return _encode(_base(response_id, "text_completion", model, rows, usage))


# What vLLM 0.32 always has in a body and has nothing to say about here.
_MESSAGE = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
_CHOICE = dict.fromkeys(("logprobs", "token_ids", "routed_experts"))
_COMPLETION_CHOICE = dict.fromkeys(("prompt_logprobs", "prompt_token_ids"))
_BODY = dict.fromkeys(("service_tier", "system_fingerprint", "kv_transfer_params", "ec_transfer_params", "metrics"))
_CHAT = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))


def _choice(choice: CollectedChoice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        **_CHOICE,
    }


def _base(response_id: str, kind: str, model: str, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage_object(usage),
        **_BODY,
    }
