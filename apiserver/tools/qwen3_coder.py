"""Calls in tags, as Qwen 3 Coder and Qwen 3.5 write them; their arguments become JSON by the types in the tool's schema.

<tool_call>
<function=name>
<parameter=key>
value
</parameter>
</function>
</tool_call>
"""

import json
import re

from apiserver.stop_strings import held_length
from apiserver.tools.call_parser import CallParser
from apiserver.tools.parameter_types import json_of, types_of

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
VALUE_ENDS = (PARAMETER_END, PARAMETER, FUNCTION_END)  # a model may forget the first
HELD = (*VALUE_ENDS, *("\n" + end for end in VALUE_ENDS))
TEXT = frozenset({"string"})

_TAG_VALUE = re.compile("[^<>\n]*")


class Qwen3CoderParser(CallParser):
    """A text's value is given out as it is written, any other once it is whole."""

    markers = (START, FUNCTION)
    end_marker = END  # of the tag around the function
    known_tokens = (START, END)

    _name = ""
    _types = TEXT
    _num_parameters = 0
    _is_value_open = False  # its first piece is out

    def _inside(self) -> bool:
        """<function=name>; the tag around it may be missing."""
        if self._text.startswith(FUNCTION):
            self._at = 0
        if not self._peek():
            return False
        name = self._tag_value(FUNCTION)
        if name is None:
            return False
        if not name:
            self._break()
            return True
        self._name, self._num_parameters = name, 0
        self._start_call(name)
        self._state = self._parameters
        return True

    def _parameters(self) -> bool:
        """Between two of them, or at the end of the function."""
        if not self._peek():
            return False
        is_end = self._is_next(FUNCTION_END)
        if is_end is None and self._is_next(PARAMETER) is not True:
            return False
        key = "" if is_end else self._tag_value(PARAMETER)
        if key is None:
            return False
        if not key:
            self._at += len(FUNCTION_END) if is_end else 0
            self._end_call()
            return True
        self._add_arguments(f"{', ' if self._num_parameters else '{'}{json.dumps(key, ensure_ascii=False)}: ")
        self._num_parameters += 1
        self._types = types_of(self._schema_of(key))
        self._is_value_open = False
        self._state = self._value_start
        return True

    def _value_start(self) -> bool:
        """The template's own line break is no part of the value."""
        if not self._text and not self._is_last:
            return False
        self._at = 1 if self._text.startswith("\n") else 0
        self._consume()
        self._state = self._value
        return True

    def _value(self) -> bool:
        end, marker = self._first_marker(VALUE_ENDS)
        if marker is None:
            self._stream_value()
            return False
        self._close_value(self._text[:end].removesuffix("\n"))
        self._at = end + (len(marker) if marker == PARAMETER_END else 0)
        self._consume()
        self._state = self._parameters
        return True

    def _stream_value(self) -> None:
        if self._types != TEXT:
            return
        keep = 0 if self._is_last else held_length(self._text, HELD)
        self._at = len(self._text) - keep
        self._open_value(self._text[: self._at])
        self._consume()

    def _open_value(self, text: str) -> None:
        if text and not self._is_value_open:
            self._is_value_open = True
            self._add_arguments('"')
        self._add_arguments(_escaped(text))

    def _close_value(self, text: str) -> None:
        if self._types != TEXT:
            self._add_arguments(json_of(text, self._types))
            return
        self._open_value(text)
        self._add_arguments('"' if self._is_value_open else '""')

    def _end_call(self) -> None:
        self._add_arguments("}" if self._num_parameters else "{}")
        self._consume()
        self.num_calls += 1
        self._state = self._ending

    def _tag_value(self, opening: str) -> str | None:
        """Of the tag that begins here, which is passed: "" where it is none, None while that is open."""
        is_there = self._is_next(opening)
        if not is_there:
            return None if is_there is None else ""
        value = _TAG_VALUE.match(self._text, self._at + len(opening))
        assert value is not None
        if value.end() == len(self._text):
            return None
        if self._text[value.end()] != ">":
            return ""
        self._at = value.end() + 1
        self._consume()
        return value[0].strip()

    def _schema_of(self, key: str) -> object:
        parameters = self._schemas.get(self._name)
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        return properties.get(key) if isinstance(properties, dict) else None


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
