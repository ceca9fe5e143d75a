"""Answers of the Messages API as clients read them: one body, or the events of a stream in Anthropic's order.

https://platform.claude.com/docs/en/api/messages-streaming (2026-11). The prompt's tokens are known at the start of a
stream; how many of them the cache gave is known at its end, and stands in the last usage.
"""

from typing import Any

import msgspec

from apiserver.anthropic.blocks import block_delta, block_start, blocks_of, goes_on
from apiserver.anthropic.errors import AnthropicError
from apiserver.errors import ApiError
from apiserver.generation import CollectedChoice, GenerationRequest, Usage
from apiserver.output_parts import Content, Part
from apiserver.parsed_text import ParsedText
from ipc.record import Scored

_encode = msgspec.json.encode

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
EMPTY = Content("")
TEXT_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
)


class MessageEvents:
    """Events of one streamed message: apiserver.event_stream.Events, of one choice. `usage` is always asked for.

    Where the answer is not parsed it is one block of text, whose events are ready-made.
    """

    done = b""

    def __init__(self, response_id: str, model: str, request_id: str, request: GenerationRequest) -> None:
        self._request_id = request_id
        num_prompt_tokens = sum(prompt.num_tokens for prompt in request.prompts)
        usage = Usage(prompt_tokens=num_prompt_tokens, completion_tokens=0, cached_tokens=0)
        self._message = {**_message(response_id, model), "content": [], "usage": usage_object(usage)}
        self._is_parsed = request.output_format is not None
        self._open: dict[str, Any] | None = None  # the block, as it began; Any: JSON, here and below
        self._block_index = -1
        self._stop: dict[str, str | None] = {}

    def opening(self, _index: int) -> bytes:
        start = _event("message_start", message=self._message)
        if self._is_parsed:
            return start + PING
        return start + self._begin(EMPTY) + PING

    def delta(self, _index: int) -> tuple[bytes, bytes]:
        return TEXT_DELTA, b'"}}\n\n'

    def parts(self, _index: int, parts: list[Part], _scores: list[Scored]) -> bytes:
        return b"".join([self._add(part) for part in parts])

    def scored(self, _index: int, _text: bytes, _scores: list[Scored]) -> bytes:
        raise AssertionError("this API has no logprobs")

    def logprobs(self, _scores: list[Scored]) -> dict[str, Any]:
        raise AssertionError("this API has no logprobs")

    def closing(self, _index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        """An answer without a word is a block without one."""
        self._stop = stop_fields(finish_reason, stop_reason)
        opening = self._begin(EMPTY) if self._open is None else b""
        return opening + self._end()

    def usage(self, usage: Usage) -> bytes:
        return _event("message_delta", delta=self._stop, usage=usage_object(usage)) + MESSAGE_STOP

    def failed(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + AnthropicError(error, self._request_id).body() + b"\n\n"

    def _add(self, part: Part) -> bytes:
        opening = b""
        if self._open is None:
            opening = self._begin(part)
        elif not goes_on(self._open, part):
            opening = self._end() + self._begin(part)
        delta = block_delta(part)
        if delta is None:
            return opening
        return opening + _event("content_block_delta", index=self._block_index, delta=delta)

    def _begin(self, part: Part) -> bytes:
        self._open = block_start(part)
        self._block_index += 1
        return _event("content_block_start", index=self._block_index, content_block=self._open)

    def _end(self) -> bytes:
        return _event("content_block_stop", index=self._block_index)


def message_body(response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
    choice = choices[0]
    parts, reason = list[Part]((Content(choice.content),)), choice.finish_reason or "stop"
    if isinstance(choice.text, ParsedText):
        parts, reason = choice.text.take_parts(), choice.text.finish_reason(reason)
    stop = stop_fields(reason, choice.stop_reason)
    content = {"content": blocks_of(parts or [EMPTY]), "usage": usage_object(usage)}
    return _encode({**_message(response_id, model), **stop, **content})


def stop_fields(finish_reason: str, stop_reason: str | int | None) -> dict[str, str | None]:
    if finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finish_reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_reason}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def usage_object(usage: Usage) -> dict[str, int]:
    """What was read from the cache is not part of `input_tokens` here. Nothing is charged for writing it."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _message(response_id: str, model: str) -> dict[str, Any]:
    return {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))
