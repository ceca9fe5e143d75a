"""The answer to a Responses request: one object, or the numbered events of a stream."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from apiserver.errors import ApiError
from apiserver.generation import CollectedChoice, Usage
from apiserver.logprobs import TokenTexts, chat_logprobs
from apiserver.output_parts import Content, Part
from apiserver.parsed_text import ParsedText
from apiserver.responses.items import Event, OutputItem, new_item
from apiserver.responses.response_object import ResponseObject
from ipc.record import Scored

_encode = msgspec.json.encode

Keep = Callable[[dict[str, Any]], None]
"""Told of a response that has ended, before the client is. Any: JSON, here and below."""
EMPTY = Content("")


class ResponseEvents:
    """Events of one streamed response: apiserver.parsed_choice.PartEvents, of one choice. `usage` is always asked for."""

    done = b""

    def __init__(self, response: ResponseObject, texts: TokenTexts, keep: Keep) -> None:
        self._response, self._texts, self._keep = response, texts, keep
        self._sequence_number = 0
        self._output: list[dict[str, Any]] = []
        self._open: OutputItem | None = None
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still held back, or is reasoning
        self._is_incomplete = False

    def opening(self, _index: int) -> bytes:
        response = {"response": self._response.in_progress()}
        return self._events([("response.created", response), ("response.in_progress", response)])

    def delta(self, _index: int) -> tuple[bytes, bytes]:
        """Each event has a number of its own: none is ready-made."""
        return b"", b""

    def parts(self, _index: int, parts: list[Part], scores: list[Scored]) -> bytes:
        if scores:
            self._logprobs += self.logprobs(scores)["content"]
        return b"".join([self._add(part) for part in parts])

    def scored(self, _index: int, _text: bytes, _scores: list[Scored]) -> bytes:
        raise AssertionError("all of the answer comes as parts")

    def logprobs(self, scores: list[Scored]) -> dict[str, Any]:
        return chat_logprobs(self._texts, scores)

    def closing(self, _index: int, finish_reason: str, _stop_reason: str | int | None) -> bytes:
        """An answer without a word is a message without one."""
        self._is_incomplete = finish_reason == "length"
        has_scores = self._logprobs and self._open is not None and self._open.takes(EMPTY)
        rest = self._add(EMPTY) if has_scores or (self._open is None and not self._output) else b""
        return rest + self._close("incomplete" if self._is_incomplete else "completed")

    def usage(self, usage: Usage) -> bytes:
        response = self._response.ended(self._output, usage, is_incomplete=self._is_incomplete)
        self._keep(response)
        return self._events([(f"response.{response['status']}", {"response": response})])

    def failed(self, error: ApiError) -> bytes:
        closing = self._close("incomplete")
        response = self._response.failed(self._output, error.message)
        self._keep(response)
        return closing + self._events([("response.failed", {"response": response})])

    def _add(self, part: Part) -> bytes:
        events = b""
        if self._open is None or not self._open.takes(part):
            events = self._close("completed")
            self._open = new_item(part, len(self._output))
            events += self._events(self._open.added())
        logprobs: list[dict[str, Any]] = []
        if isinstance(part, Content):
            logprobs, self._logprobs = self._logprobs, []
        return events + self._events(self._open.add(part, logprobs))

    def _close(self, status: str) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        events = self._events(item.done(status))
        self._output.append(item.item(status))
        return events

    def _events(self, events: Iterable[Event]) -> bytes:
        return b"".join([self._event(kind, fields) for kind, fields in events])

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        body = _encode({"type": kind, **fields, "sequence_number": self._sequence_number})
        self._sequence_number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


def response_body(response: ResponseObject, choice: CollectedChoice, usage: Usage, keep: Keep) -> bytes:
    is_incomplete = choice.finish_reason == "length"
    assert isinstance(choice.text, ParsedText)
    output = _output(choice.text.take_parts(), choice.logprobs, "incomplete" if is_incomplete else "completed")
    ended = response.ended(output, usage, is_incomplete=is_incomplete)
    keep(ended)
    return _encode(ended)


def _output(parts: list[Part], logprobs: dict[str, Any] | None, last_status: str) -> list[dict[str, Any]]:
    """As a stream would have it; all logprobs stand with the last message."""
    items: list[OutputItem] = []
    last_message = max((place for place, part in enumerate(parts) if isinstance(part, Content)), default=None)
    if not parts:
        parts, last_message = [*parts, EMPTY], len(parts)
    for place, part in enumerate(parts):
        if not items or not items[-1].takes(part):
            items.append(new_item(part, len(items)))
        scores = logprobs["content"] if logprobs is not None and place == last_message else []
        list(items[-1].add(part, scores))
    return [item.item(last_status if item is items[-1] else "completed") for item in items]
