"""[TOOL_CALLS] and behind it calls: a JSON array of them (tokenizers before v11), or name{…}, name[ARGS]{…} (later ones).

An id is nine letters and digits: Mistral's templates refuse any other when the call comes back.
"""

import re
import secrets
import string

from apiserver.tools.call_parser import JsonListParser, ParameterSchemas
from apiserver.tools.json_reader import JsonReader

START, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"

_NAME = re.compile(r"[\w.-]+")
_ID_CHARACTERS = string.ascii_letters + string.digits


class MistralParser(JsonListParser):
    markers = (START,)
    known_tokens = (START, CALL_ID, ARGS)

    _name = ""
    _reader: JsonReader

    def __init__(self, schemas: ParameterSchemas) -> None:
        super().__init__(schemas)
        self._state = self._outside

    def _new_id(self) -> str:
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))

    def _inside(self) -> bool:
        character = self._peek()
        if not character:
            return False
        self._state = self._opening if character == "[" else self._named
        return True

    def _named(self) -> bool:
        """The name is whole once something stands behind it."""
        name = _NAME.match(self._text, self._at)
        if name is None:
            self._break()
            return True
        if name.end() == len(self._text):
            return False
        self._name, self._at = name[0], name.end()
        self._state = self._behind_name
        return True

    def _behind_name(self) -> bool:
        """An id of the model's own is passed over."""
        if not self._peek():
            return False
        has_id, has_args = self._is_next(CALL_ID), self._is_next(ARGS)
        if has_id:
            end = self._text.find("[", self._at + 1)
            if end < 0:
                return False
            self._at = end
            return True
        if has_id is None or has_args is None:
            return False
        if has_args:
            self._at += len(ARGS)
        self._state = self._braces
        return True

    def _braces(self) -> bool:
        character = self._peek()
        if not character:
            return False
        if character != "{":
            self._break()
            return True
        self._consume()
        self._start_call(self._name)
        self._reader = JsonReader()
        self._state = self._arguments
        return True

    def _arguments(self) -> bool:
        self._at = self._reader.read(self._text, 0)
        if self._is_last and not (self._reader.is_complete or self._reader.is_broken):
            self._at = len(self._text)  # cut off in the middle: the call keeps what it has
        self._add_arguments(self._text[: self._at])
        self._consume()
        if not (self._reader.is_complete or self._reader.is_broken):
            return False
        self.num_calls += 1
        self._state = self._outside
        return True
