"""Response bodies and stream events as clients read them: chat and completion, whole and in chunks.

Chunks are not built per token, and the bytes of a stream's events are put together without an encoder where they can be.
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from apiserver.collected_details import CollectedDetails
from apiserver.errors import ApiError
from apiserver.generation import CollectedChoice, GenerationRequest, Usage
from apiserver.logprobs import TokenTexts, chat_logprobs, completion_logprobs, prompt_logprobs
from apiserver.output_parts import CallArguments, CallStart, Content, Part, Reasoning
from apiserver.parsed_text import ParsedText
from ipc.record import Scored

_encode = msgspec.json.encode


def usage_object(usage: Usage) -> dict[str, Any]:  # Any: JSON
    content: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens is not None:
        content["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    if usage.stages is not None:
        content["stages_ms"] = usage.stages
    return content


def running_usage(num_prompt_tokens: int, num_tokens: int, num_reasoning_tokens: int | None) -> dict[str, Any]:
    """Of a choice that has not ended; None: the model's answers are not parsed for reasoning."""
    content: dict[str, Any] = {
        "prompt_tokens": num_prompt_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
        "completion_tokens": num_tokens,
    }
    if num_reasoning_tokens is not None:
        content["completion_tokens_details"] = {"reasoning_tokens": num_reasoning_tokens}
    return content


class _Events:
    """What both kinds of stream share: an event is put together from bytes around what changes."""

    kind: str
    done = b"data: [DONE]\n\n"

    def __init__(self, response_id: str, model: str, texts: TokenTexts) -> None:
        self._texts = texts
        head = {"id": response_id, "object": self.kind, "created": int(time.time()), "model": model}
        self._head = b"data: " + _encode(head)[:-1]
        self._choice = self._head + b',"choices":[{"index":'

    def prompt_logprobs(self, scores: list[Scored]) -> list[dict[str, Any] | None]:
        return prompt_logprobs(self._texts, scores)

    def usage(self, usage: Usage) -> bytes:
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, _encode(usage_object(usage)))

    def failed(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"


class ChatEvents(_Events):
    """Events of one streamed chat: apiserver.event_stream.Events."""

    kind = "chat.completion.chunk"

    def __init__(
        self, response_id: str, model: str, texts: TokenTexts, opening_fields: dict[str, Any] | None = None
    ) -> None:
        """`opening_fields` of the request's, beside the choice that an opening event is for."""
        super().__init__(response_id, model, texts)
        self._opening_end = b"," + _encode(opening_fields)[1:] if opening_fields else b"}"

    def opening(self, index: int) -> bytes:
        delta = b'{"role":"assistant","content":""}'
        form = b'%b%d,"delta":%b,"logprobs":null,"finish_reason":null}]%b\n\n'
        return form % (self._choice, index, delta, self._opening_end)

    def delta(self, index: int) -> tuple[bytes, bytes]:
        prefix = b'%b%d,"delta":{"content":"' % (self._choice, index)
        return prefix, b'"},"logprobs":null,"finish_reason":null}]}\n\n'

    def scored(self, index: int, text: bytes, scores: list[Scored]) -> bytes:
        form = b'%b%d,"delta":{"content":"%b"},"logprobs":%b,"finish_reason":null}]}\n\n'
        return form % (self._choice, index, text, _encode(self.logprobs(scores)))

    def parts(self, index: int, parts: list[Part], scores: list[Scored]) -> bytes:
        """apiserver.parsed_choice.PartEvents."""
        deltas = [_delta_of(part) for part in parts] or [b"{}"]
        logprobs = [_encode(self.logprobs(scores)) if scores else b"null", *[b"null"] * (len(deltas) - 1)]
        form = b'%b%d,"delta":%b,"logprobs":%b,"finish_reason":null}]}\n\n'
        return b"".join([form % (self._choice, index, *pair) for pair in zip(deltas, logprobs, strict=True)])

    def logprobs(self, scores: list[Scored]) -> dict[str, Any]:
        return chat_logprobs(self._texts, scores)

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        reasons = _encode(finish_reason), _encode(stop_reason)
        form = b'%b%d,"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b}]}\n\n'
        return form % (self._choice, index, *reasons)


def opening_fields_or_none(request: GenerationRequest) -> dict[str, Any] | None:
    """Of a chat's opening events, where the request asks for details."""
    details, [prompt] = request.details, request.prompts
    if details is None:
        return None
    fields: dict[str, Any] = {}
    if details.has_prompt_ids:
        fields["prompt_token_ids"] = prompt.as_list()
    if details.has_running_usage:
        fields["usage"] = running_usage(prompt.num_tokens, 0, 0 if request.counts_reasoning else None)
    return fields


def _delta_of(part: Part) -> bytes:
    match part:
        case Content(text=text):
            return b'{"content":%b}' % _encode(text)
        case Reasoning(text=text):
            encoded = _encode(text)
            return b'{"reasoning":%b,"reasoning_content":%b}' % (encoded, encoded)
        case CallStart(index=index, id=call_id, name=name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
            return b'{"tool_calls":[%b]}' % _encode(call)
        case CallArguments(index=index, text=text):
            return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, _encode(text))


class CompletionEvents(_Events):
    """Events of one streamed completion."""

    kind = "text_completion"

    def __init__(self, response_id: str, model: str, texts: TokenTexts) -> None:
        super().__init__(response_id, model, texts)
        self._offsets: dict[int, int] = {}  # per choice: characters of the tokens scored so far

    def opening(self, _index: int) -> bytes:
        return b""

    def delta(self, index: int) -> tuple[bytes, bytes]:
        prefix = b'%b%d,"text":"' % (self._choice, index)
        return prefix, b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'

    def scored(self, index: int, text: bytes, scores: list[Scored], first: int | None = None) -> bytes:
        """`first`: an echoed prompt's first token, which has no score."""
        offset = self._offsets.get(index, 0)
        logprobs, self._offsets[index] = completion_logprobs(self._texts, scores, offset, first)
        form = b'%b%d,"text":"%b","logprobs":%b,"finish_reason":null,"stop_reason":null}]}\n\n'
        return form % (self._choice, index, text, _encode(logprobs))

    def logprobs(self, scores: list[Scored], first: int | None = None) -> dict[str, Any]:
        return completion_logprobs(self._texts, scores, 0, first)[0]

    def closing(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        reasons = _encode(finish_reason), _encode(stop_reason)
        form = b'%b%d,"text":"","logprobs":null,"finish_reason":%b,"stop_reason":%b}]}\n\n'
        return form % (self._choice, index, *reasons)


def chat_body(response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
    rows = [{**_choice(choice), "message": _message(choice)} for choice in choices]
    body = {**_base(response_id, "chat.completion", model, choices, rows, usage), **_CHAT}
    if isinstance(choices[0], CollectedDetails):
        body["prompt_token_ids"] = choices[0].prompt_ids
        body["prompt_logprobs"] = choices[0].prompt_logprobs
    return _encode(body)


def _message(choice: CollectedChoice) -> dict[str, Any]:
    message = {"role": "assistant", "content": choice.content, **_MESSAGE}
    if isinstance(choice.text, ParsedText):
        message.update(_parsed(choice.text.take_parts()))
    return message


def _parsed(parts: list[Part]) -> dict[str, Any]:
    """Fields of a message. `reasoning` is vLLM's name, `reasoning_content` that of older clients and other servers."""
    content = "".join([part.text for part in parts if isinstance(part, Content)])
    reasoning = "".join([part.text for part in parts if isinstance(part, Reasoning)]) or None
    fields = {"content": content or None, "reasoning": reasoning, "reasoning_content": reasoning}
    calls = calls_of(parts)
    return {**fields, "tool_calls": calls} if calls else fields


def calls_of(parts: list[Part]) -> list[dict[str, Any]]:
    """As a message has them."""
    arguments: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, CallArguments):
            arguments.setdefault(part.index, []).append(part.text)
    return [
        {
            "id": part.id,
            "type": "function",
            "function": {"name": part.name, "arguments": "".join(arguments.get(part.index, ()))},
        }
        for part in parts
        if isinstance(part, CallStart)
    ]


def completion_body(response_id: str, model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
    rows = [_completion_choice(choice) for choice in choices]
    return _encode(_base(response_id, "text_completion", model, choices, rows, usage))


def _completion_choice(choice: CollectedChoice) -> dict[str, Any]:
    row = {**_choice(choice), "text": choice.content, **_COMPLETION_CHOICE}
    if isinstance(choice, CollectedDetails):
        row["prompt_token_ids"] = choice.prompt_ids
        row["prompt_logprobs"] = choice.prompt_logprobs
    return row


# What vLLM 0.32 always has in a body and has nothing to say about here.
_MESSAGE = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
_CHOICE = dict.fromkeys(("token_ids", "routed_experts"))
_COMPLETION_CHOICE = dict.fromkeys(("prompt_logprobs", "prompt_token_ids"))
_BODY = dict.fromkeys(("service_tier", "system_fingerprint", "ec_transfer_params", "metrics"))
_CHAT = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))


def _choice(choice: CollectedChoice) -> dict[str, Any]:
    row = {
        "index": choice.index,
        "finish_reason": _finish_reason(choice),
        "stop_reason": choice.stop_reason,
        "logprobs": choice.logprobs,
        **_CHOICE,
    }
    if isinstance(choice, CollectedDetails):
        row["token_ids"] = choice.output_ids
    return row


def _finish_reason(choice: CollectedChoice) -> str | None:
    reason = choice.finish_reason
    return choice.text.finish_reason(reason) if reason and isinstance(choice.text, ParsedText) else reason


def _base(
    response_id: str,
    kind: str,
    model: str,
    choices: Sequence[CollectedChoice],
    rows: list[dict[str, Any]],
    usage: Usage,
) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": rows,
        "usage": {"completion_tokens_details": None, **usage_object(usage)},
        **_BODY,
        "kv_transfer_params": kv_transfer_params(choices),
    }


def kv_transfer_params(choices: Sequence[CollectedChoice]) -> Raw | None:
    """What vLLM's KV connector says of the first choice's blocks."""
    attachment = choices[0].attachment
    return None if attachment is None else Raw(attachment)
