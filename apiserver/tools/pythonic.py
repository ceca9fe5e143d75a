"""[name(key=value, …), name()], as Llama 3.2 and 4 and ToolACE write calls: the whole answer is such a list.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_2 (zero-shot function calling)
"""

import json
import re

from apiserver.tools.call_parser import CallParser, ParameterSchemas
from apiserver.tools.python_literal import NotALiteral, end_of_argument, json_of

_NAME = re.compile(r"[A-Za-z_][\w.]*")


class PythonicParser(CallParser):
    """An argument is given out once its value is whole."""

    _num_arguments = 0

    def __init__(self, schemas: ParameterSchemas) -> None:
        super().__init__(schemas)
        self._state = self._opening

    @property
    def is_plain(self) -> bool:
        return self._state == self._outside and not self._is_beside_call

    def _opening(self) -> bool:
        return self._expect("[", self._function)

    def _function(self) -> bool:
        """name( — up to its bracket nothing of a call is certain."""
        if not self._peek():
            return False
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._break()
            return True
        if name.end() == len(self._text):
            return False
        self._at = name.end()
        if self._text[self._at] != "(":
            self._break()
            return True
        self._at += 1
        self._consume()
        self._start_call(name[0])
        self._num_arguments = 0
        self._state = self._argument
        return True

    def _argument(self) -> bool:
        """key=value and the comma behind it, or the end of the call. Text that is none of these ends the call."""
        if not self._peek():
            return False
        if self._text[self._at] == ")":
            self._end_call()
            return True
        try:
            end = end_of_argument(self._text, self._at)
            if end is None:
                return False
            key, equals, value = self._text[self._at : end].partition("=")
            if not equals or not key.strip().isidentifier():
                raise NotALiteral(key)
            written = f"{json.dumps(key.strip())}: {json_of(value)}"
        except NotALiteral:
            self._give_up()
            return True
        self._add_arguments((", " if self._num_arguments else "{") + written)
        self._num_arguments += 1
        self._at = end + (self._text[end] == ",")
        self._consume()
        return True

    def _end_call(self) -> None:
        self._add_arguments("}" if self._num_arguments else "{}")
        self._at += 1
        self._consume()
        self.num_calls += 1
        self._state = self._next

    def _give_up(self) -> None:
        """The call keeps the arguments it has, and the rest of the answer is content."""
        self._add_arguments("}" if self._num_arguments else "{}")
        self.num_calls += 1
        self._at = 0
        self._state = self._outside

    def _next(self) -> bool:
        character = self._peek()
        if not character:
            return False
        if character not in ",]":
            self._break()
            return True
        self._at += 1
        if character == "]":
            self._consume()
        self._state = self._function if character == "," else self._outside
        return True
