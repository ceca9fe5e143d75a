"""Where a JSON value ends, in a text that is still arriving (RFC 8259)."""

import re
from enum import Enum, auto

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_RUN = re.compile(r'[^ \t\r\n,:"\[\]{}]*')
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")


class _Expected(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()


def skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches nothing at all, too
    return match.end()


class JsonReader:
    """Reads one value. What it has taken is always the beginning of valid JSON: escapes, numbers and words are taken whole,
    so a value that is no string, object or array needs one character behind it."""

    __slots__ = ("_expected", "_is_in_string", "_is_key", "_open", "is_broken", "is_complete")

    def __init__(self) -> None:
        self._expected = _Expected.VALUE
        self._open: list[str] = []  # closing brackets that are owed
        self._is_in_string = self._is_key = False
        self.is_complete = self.is_broken = False

    def read(self, text: str, at: int) -> int:
        """Where it stopped: behind the value, at what breaks it, or before what has not arrived whole."""
        while not self.is_complete and at < len(text):
            end = self._string_piece(text, at) if self._is_in_string else self._token(text, skip_space(text, at))
            if end is None:
                break
            at = end
        return at

    def _string_piece(self, text: str, at: int) -> int | None:
        plain = _PLAIN.match(text, at)
        if plain is not None:
            return plain.end()
        if text[at] == '"':
            self._is_in_string = False
            self._after_value(_Expected.COLON if self._is_key else None)
            return at + 1
        escape = _ESCAPE.match(text, at)
        if escape is not None:
            return escape.end()
        if _BEGUN_ESCAPE.fullmatch(text, at) is None:
            self.is_broken = True
        return None

    def _token(self, text: str, at: int) -> int | None:
        """None: it has not arrived, or does not belong here."""
        character = text[at : at + 1]
        match self._expected, character:
            case _, "":
                return None
            case ((_Expected.VALUE | _Expected.VALUE_OR_END), "{"):
                self._open.append("}")
                self._expected = _Expected.KEY_OR_END
            case ((_Expected.VALUE | _Expected.VALUE_OR_END), "["):
                self._open.append("]")
                self._expected = _Expected.VALUE_OR_END
            case ((_Expected.VALUE | _Expected.VALUE_OR_END | _Expected.KEY | _Expected.KEY_OR_END), '"'):
                self._is_key = self._expected in (_Expected.KEY, _Expected.KEY_OR_END)
                self._is_in_string = True
            case (_Expected.VALUE_OR_END, "]") | (_Expected.KEY_OR_END, "}"):
                self._close()
            case _Expected.COMMA_OR_END, ("]" | "}") if character == self._open[-1]:
                self._close()
            case _Expected.COMMA_OR_END, ",":
                self._expected = _Expected.KEY if self._open[-1] == "}" else _Expected.VALUE
            case _Expected.COLON, ":":
                self._expected = _Expected.VALUE
            case ((_Expected.VALUE | _Expected.VALUE_OR_END), _):
                return self._scalar(text, at)
            case _:
                self.is_broken = True
                return None
        return at + 1

    def _scalar(self, text: str, at: int) -> int | None:
        run = _RUN.match(text, at)
        assert run is not None
        if run.end() == len(text):
            return None
        if _SCALAR.fullmatch(text, at, run.end()) is None:
            self.is_broken = True
            return None
        self._after_value(None)
        return run.end()

    def _close(self) -> None:
        self._open.pop()
        self._after_value(None)

    def _after_value(self, expected: _Expected | None) -> None:
        if expected is not None:
            self._expected = expected
        elif self._open:
            self._expected = _Expected.COMMA_OR_END
        else:
            self.is_complete = True
