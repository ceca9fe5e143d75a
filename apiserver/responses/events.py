"""The answer to a Responses request: one object, or the numbered events of a stream.

https://platform.openai.com/docs/api-reference/responses-streaming (2026-11). There are parts that only their text changes in;
they are put together without an encoder.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from apiserver.errors import ApiError
from apiserver.generation import CollectedChoice, Usage
from apiserver.logprobs import TokenTexts, chat_logprobs
from apiserver.responses.response_object import ResponseObject, item_id, message_item, text_part
from apiserver.token_table import escape
from ipc.record import Scored

_encode = msgspec.json.encode

Keep = Callable[[dict[str, Any]], None]
"""Told of a response that has ended, before the client is. Any: JSON, here and below."""


class ResponseEvents:
    """Events of one streamed response: apiserver.event_stream.Events, of one choice. `usage` is always asked for."""

    done = b""

    def __init__(self, response: ResponseObject, texts: TokenTexts, keep: Keep) -> None:
        self._response, self._texts, self._keep = response, texts, keep
        self._sequence_number = 0
        self._output: list[dict[str, Any]] = []
        self._item_id = ""  # of the message that is open
        self._delta = b""
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._is_incomplete = False

    def opening(self, _index: int) -> bytes:
        response = self._response.in_progress()
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, _index: int) -> tuple[bytes, bytes]:
        """Each event has a number of its own: apiserver.responses.choice asks `text` for every one."""
        return b"", b""

    def text(self, piece: str, scores: list[Scored]) -> bytes:
        """More of the message, and its beginning where it is the first of it."""
        opening = b"" if self._item_id else self._open_message()
        logprobs = self.logprobs(scores)["content"] if scores else []
        self._pieces.append(piece)
        self._logprobs += logprobs
        number = self._next_number()
        return b'%b%b%b","logprobs":%b,"sequence_number":%d}\n\n' % (
            opening, self._delta, escape(piece), _encode(logprobs), number,
        )  # fmt: skip

    def scored(self, _index: int, _text: bytes, _scores: list[Scored]) -> bytes:
        raise AssertionError("asked for by `text`")

    def logprobs(self, scores: list[Scored]) -> dict[str, Any]:
        return chat_logprobs(self._texts, scores)

    def closing(self, _index: int, finish_reason: str, _stop_reason: str | int | None) -> bytes:
        self._is_incomplete = finish_reason == "length"
        opening = b"" if self._item_id else self._open_message()
        return opening + self._close_message("incomplete" if self._is_incomplete else "completed")

    def usage(self, usage: Usage) -> bytes:
        response = self._response.ended(self._output, usage, is_incomplete=self._is_incomplete)
        self._keep(response)
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        closing = self._close_message("incomplete") if self._item_id else b""
        response = self._response.failed(self._output, error.message)
        self._keep(response)
        return closing + self._event("response.failed", response=response)

    def _open_message(self) -> bytes:
        self._item_id = item_id("msg")
        place = {"item_id": self._item_id, "output_index": len(self._output), "content_index": 0}
        head = _encode({"type": "response.output_text.delta", **place, "delta": ""})
        self._delta = b"event: response.output_text.delta\ndata: " + head.removesuffix(b'"}')
        item = message_item(self._item_id, "in_progress", [])
        return self._event("response.output_item.added", output_index=len(self._output), item=item) + self._event(
            "response.content_part.added", **place, part=text_part("", [])
        )

    def _close_message(self, status: str) -> bytes:
        text, logprobs = "".join(self._pieces), self._logprobs
        place = {"item_id": self._item_id, "output_index": len(self._output), "content_index": 0}
        part = text_part(text, logprobs)
        item = message_item(self._item_id, status, [part])
        events = (
            self._event("response.output_text.done", **place, text=text, logprobs=logprobs)
            + self._event("response.content_part.done", **place, part=part)
            + self._event("response.output_item.done", output_index=len(self._output), item=item)
        )
        self._output.append(item)
        self._item_id, self._pieces, self._logprobs = "", [], []
        return events

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = _encode({"type": kind, **fields, "sequence_number": self._next_number()})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)

    def _next_number(self) -> int:
        number = self._sequence_number
        self._sequence_number += 1
        return number


def response_body(response: ResponseObject, choice: CollectedChoice, usage: Usage, keep: Keep) -> bytes:
    is_incomplete = choice.finish_reason == "length"
    logprobs = choice.logprobs["content"] if choice.logprobs is not None else []
    status = "incomplete" if is_incomplete else "completed"
    output = [message_item(item_id("msg"), status, [text_part(choice.content, logprobs)])]
    ended = response.ended(output, usage, is_incomplete=is_incomplete)
    keep(ended)
    return _encode(ended)
