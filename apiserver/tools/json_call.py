"""A call written as one JSON object, {"name": …, "arguments": {…}}, read while it arrives."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import msgspec

from apiserver.output_parts import CallArguments, CallStart, Part
from apiserver.tools.json_reader import JsonReader, skip_space

ARGUMENTS = ("arguments", "parameters")


class _Stage(Enum):
    OPENING = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT = auto()


class JsonCall:
    """The call starts with its name and the opening of its arguments, whichever comes last; from there on arguments are
    given out as they are written. Arguments that are themselves JSON inside a string are taken out of it."""

    __slots__ = (
        "_arguments", "_index", "_is_streaming", "_kept", "_key", "_name", "_new_id", "_reader", "_stage", "has_started",
        "is_broken", "is_complete",
    )  # fmt: skip

    def __init__(self, index: int, new_id: Callable[[], str]) -> None:
        self._index, self._new_id = index, new_id
        self._stage = _Stage.OPENING
        self._reader: JsonReader | None = None  # of the key or value that is being read
        self._kept = ""  # what that has taken, unless it streams
        self._key = ""
        self._name: str | None = None
        self._arguments: str | None = None  # as written, where they could not be streamed
        self._is_streaming = False
        self.has_started = self.is_complete = self.is_broken = False

    def read(self, text: str, at: int, parts: list[Part]) -> int:
        """As JsonReader.read; `parts` gets what is now certain."""
        while not self.is_complete and not self.is_broken:
            if self._reader is not None:
                end = self._read_value(self._reader, text, at, parts)
                if self._reader is not None or self.is_broken:
                    return end
                at = end
                continue
            at = skip_space(text, at)
            if at == len(text):
                break
            at = self._take(text, at, parts)
        return at

    def finish(self, rest: str) -> list[Part]:
        """The answer ended inside the call; `rest` was not read."""
        return [CallArguments(self._index, rest)] if self._is_streaming and rest else []

    def _take(self, text: str, at: int, parts: list[Part]) -> int:
        """The character between two values, or the start of one."""
        character = text[at]
        match self._stage, character:
            case _Stage.OPENING, "{":
                self._stage = _Stage.FIRST_KEY
            case ((_Stage.FIRST_KEY | _Stage.KEY), '"'):
                self._begin_value()
                return at
            case _Stage.COLON, ":":
                self._stage = _Stage.VALUE
            case _Stage.VALUE, _:
                self._begin_value()
                if self._key in ARGUMENTS and self._name and character == "{" and not self.has_started:
                    self._is_streaming = True
                    self._start(parts)
                return at
            case _Stage.NEXT, ",":
                self._stage = _Stage.KEY
            case ((_Stage.NEXT | _Stage.FIRST_KEY), "}") if self._end(parts):
                self.is_complete = True
            case _:
                self.is_broken = True
                return at
        return at + 1

    def _begin_value(self) -> None:
        self._reader, self._kept = JsonReader(), ""

    def _read_value(self, reader: JsonReader, text: str, at: int, parts: list[Part]) -> int:
        end = reader.read(text, at)
        piece = text[at:end]
        if not self._is_streaming:
            self._kept += piece
        elif piece:
            parts.append(CallArguments(self._index, piece))
        if reader.is_broken:
            self.is_broken = True
        elif reader.is_complete:
            self._reader = None
            self._note_value()
        return end

    def _note_value(self) -> None:
        if self._stage in (_Stage.FIRST_KEY, _Stage.KEY):
            self._key = _decoded(self._kept) or ""
            self._stage = _Stage.COLON
            return
        self._stage = _Stage.NEXT
        if self._is_streaming:
            self._is_streaming = False
        elif self._key == "name":
            name = _decoded(self._kept)
            self._name = name if isinstance(name, str) else None
        elif self._key in ARGUMENTS:
            self._arguments = self._kept

    def _end(self, parts: list[Part]) -> bool:
        """At the closing bracket. False: it was no call."""
        if self.has_started:
            return True
        arguments = None if self._arguments is None else _object_or_none(self._arguments)
        if not self._name or arguments is None:
            return False
        self._start(parts)
        parts.append(CallArguments(self._index, arguments))
        return True

    def _start(self, parts: list[Part]) -> None:
        assert self._name is not None
        self.has_started = True
        parts.append(CallStart(self._index, self._new_id(), self._name))


def _object_or_none(written: str) -> str | None:
    """The arguments' JSON: an object, an object in a string, or null for none."""
    value = _decoded(written)
    if isinstance(value, str):
        written, value = value, _decoded(value)
    if value is None:
        return "{}"
    return written if isinstance(value, dict) else None


def _decoded(text: str) -> Any:  # Any: JSON
    """None also for what is no JSON."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
