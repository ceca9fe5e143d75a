"""The items of a response's output as they come: a message, reasoning, a function call. Each knows its events and what has
become of it.

https://platform.openai.com/docs/api-reference/responses-streaming (2026-11). An event is its type and its fields, less the
number that every event has.
"""

import random
from collections.abc import Iterator
from typing import Any, Protocol

from apiserver.output_parts import CallArguments, CallStart, Content, Part, Reasoning

Fields = dict[str, Any]  # Any: JSON
Event = tuple[str, Fields]


class OutputItem(Protocol):
    def added(self) -> Iterator[Event]: ...

    def takes(self, part: Part) -> bool:
        """Whether the part goes on with this item; else it begins the next."""
        ...

    def add(self, part: Part, logprobs: list[Fields]) -> Iterator[Event]: ...
    def done(self, status: str) -> Iterator[Event]: ...

    def item(self, status: str) -> Fields:
        """As clients read it: in_progress, completed, incomplete."""
        ...


class _TextItem:
    """One part of text, which grows."""

    def __init__(self, output_index: int, id_prefix: str) -> None:
        self._id = item_id(id_prefix)
        self._output_index = output_index
        self._pieces: list[str] = []

    def item(self, status: str) -> Fields:
        raise NotImplementedError

    def _added(self, empty_part: Fields) -> Iterator[Event]:
        item = {**self.item("in_progress"), "content": []}
        yield "response.output_item.added", {"output_index": self._output_index, "item": item}
        yield "response.content_part.added", {**self._place, "part": empty_part}

    def _done(self, part: Fields, status: str) -> Iterator[Event]:
        yield "response.content_part.done", {**self._place, "part": part}
        yield "response.output_item.done", {"output_index": self._output_index, "item": self.item(status)}

    @property
    def _text(self) -> str:
        return "".join(self._pieces)

    @property
    def _place(self) -> Fields:
        return {"item_id": self._id, "output_index": self._output_index, "content_index": 0}


class MessageItem(_TextItem):
    def __init__(self, output_index: int) -> None:
        super().__init__(output_index, "msg")
        self._logprobs: list[Fields] = []

    def added(self) -> Iterator[Event]:
        return self._added(_text_part("", []))

    def takes(self, part: Part) -> bool:
        return isinstance(part, Content)

    def add(self, part: Part, logprobs: list[Fields]) -> Iterator[Event]:
        assert isinstance(part, Content)
        self._pieces.append(part.text)
        self._logprobs += logprobs
        yield "response.output_text.delta", {**self._place, "delta": part.text, "logprobs": logprobs}

    def done(self, status: str) -> Iterator[Event]:
        text, logprobs = self._text, self._logprobs
        yield "response.output_text.done", {**self._place, "text": text, "logprobs": logprobs}
        yield from self._done(_text_part(text, logprobs), status)

    def item(self, status: str) -> Fields:
        content = [_text_part(self._text, self._logprobs)]
        return {"id": self._id, "type": "message", "status": status, "role": "assistant", "content": content}


class ReasoningItem(_TextItem):
    """Thoughts in plain text; nothing sums them up."""

    def __init__(self, output_index: int) -> None:
        super().__init__(output_index, "rs")

    def added(self) -> Iterator[Event]:
        return self._added(_reasoning_part(""))

    def takes(self, part: Part) -> bool:
        return isinstance(part, Reasoning)

    def add(self, part: Part, _logprobs: list[Fields]) -> Iterator[Event]:
        assert isinstance(part, Reasoning)
        self._pieces.append(part.text)
        yield "response.reasoning_text.delta", {**self._place, "delta": part.text}

    def done(self, status: str) -> Iterator[Event]:
        text = self._text
        yield "response.reasoning_text.done", {**self._place, "text": text}
        yield from self._done(_reasoning_part(text), status)

    def item(self, status: str) -> Fields:
        content = [_reasoning_part(self._text)]
        return {
            "id": self._id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
            "encrypted_content": None,
        }


class CallItem:
    """A function that the client is to call. The call's own id is what its output will name."""

    def __init__(self, output_index: int, start: CallStart) -> None:
        self._id = item_id("fc")
        self._output_index, self._start = output_index, start
        self._pieces: list[str] = []

    def added(self) -> Iterator[Event]:
        item = self.item("in_progress")
        yield "response.output_item.added", {"output_index": self._output_index, "item": item}

    def takes(self, part: Part) -> bool:
        return isinstance(part, CallArguments) and part.index == self._start.index

    def add(self, part: Part, _logprobs: list[Fields]) -> Iterator[Event]:
        if isinstance(part, CallArguments):  # else it is the start, which `added` has told
            self._pieces.append(part.text)
            yield "response.function_call_arguments.delta", {**self._place, "delta": part.text}

    def done(self, status: str) -> Iterator[Event]:
        arguments = {"name": self._start.name, "arguments": "".join(self._pieces)}
        yield "response.function_call_arguments.done", {**self._place, **arguments}
        yield "response.output_item.done", {"output_index": self._output_index, "item": self.item(status)}

    def item(self, status: str) -> Fields:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._start.id,
            "name": self._start.name,
            "arguments": "".join(self._pieces),
        }

    @property
    def _place(self) -> Fields:
        return {"item_id": self._id, "output_index": self._output_index}


def new_item(part: Part, output_index: int) -> OutputItem:
    """The item that begins with this part; the part itself is added to it afterwards."""
    match part:
        case Content():
            return MessageItem(output_index)
        case Reasoning():
            return ReasoningItem(output_index)
        case CallStart():
            return CallItem(output_index, part)
        case CallArguments():
            raise AssertionError("arguments of a call that never began")


def item_id(kind: str) -> str:
    """Such as msg_0123…; unique, not secret."""
    return f"{kind}_{random.getrandbits(128):032x}"


def _text_part(text: str, logprobs: list[Fields]) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _reasoning_part(text: str) -> Fields:
    return {"type": "reasoning_text", "text": text}
