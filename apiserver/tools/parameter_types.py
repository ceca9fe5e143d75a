"""Values of parameters that a model writes as bare text, made into JSON by the tool's schema.

Which types are tried, and in which order, is vLLM's (tool_parsers/utils.py, 0.32); a value that fits none stays a text.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from apiserver.tools.json_text import json_text

JSON_TYPE_OF = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def types_of(schema: object) -> frozenset[str]:
    """Of a parameter's schema, as far as it tells them by itself: `type`, `enum`, and the branches of anyOf and its kin."""
    return frozenset(_named_types(schema)) or frozenset({"string"})


def json_of(text: str, types: frozenset[str]) -> str:
    """The JSON of a value."""
    for name, read in _READERS:
        if name in types:
            value = read(text)
            if value is not _NOT_ONE:
                return json_text(value)
    return json_text(text)


def _named_types(schema: object) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else {t for t in _list(declared) if isinstance(t, str)}
    for value in _list(schema.get("enum")):
        types.add("null" if value is None else JSON_TYPE_OF[type(value)])
    for branch in (branch for name in ("anyOf", "oneOf", "allOf") for branch in _list(schema.get(name))):
        types |= _named_types(branch)
    return types


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


_NOT_ONE = object()


def _null(text: str) -> object:
    return None if text.strip().lower() == "null" else _NOT_ONE


def _integer(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return _NOT_ONE


def _number(text: str) -> object:
    try:
        value = float(text)
    except ValueError:
        return _NOT_ONE
    if not math.isfinite(value):
        return _NOT_ONE
    return int(value) if value.is_integer() else value


def _boolean(text: str) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), _NOT_ONE)


def _nested(kind: type) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return _NOT_ONE
        return value if isinstance(value, kind) else _NOT_ONE

    return read


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is out of range")
    return value


_READERS: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("null", _null),
    ("integer", _integer),
    ("number", _number),
    ("boolean", _boolean),
    ("object", _nested(dict)),
    ("array", _nested(list)),
)
