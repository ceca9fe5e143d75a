"""A JSON schema in words that llguidance holds to exactly as the standard means them; in worker and engine, no state.

llguidance 1.9.1 lets through a 29 February of any year, a leap second at any hour, and U+FEFF as something other than white
space; it refuses keywords that say nothing where they stand, and whole numbers that are written 2.0. Found with the JSON
Schema Test Suite.
"""

import json
from collections.abc import Callable
from typing import Any

Json = Any  # whatever JSON there is

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
"""Not 0000: RFC 3339 has it, but no date of Python's or of SQL's does."""
_FOURTHS = "(?:0[48]|[2468][048]|[13579][26])"  # 04 to 96
_LEAP_YEAR = f"(?:[0-9]{{2}}{_FOURTHS}|{_FOURTHS}00)"
_DAY = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"  # never :60, which most readers refuse even when it was one
    "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}
"""https://www.rfc-editor.org/rfc/rfc3339#section-5.6"""

_SPACES = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
_CLASSES = {r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]"}
"""ECMA-262's white space, which is not Unicode's."""

_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_WITHOUT = {"minContains": "contains", "maxContains": "contains", "then": "if", "else": "if"}
"""What says nothing without another keyword beside it."""
_SCHEMAS = frozenset({"items", "additionalProperties", "additionalItems"})
_LISTS_OF_SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})


def exact_source(source: str) -> str:
    """The same schema for llguidance. What is no JSON stays as it is: llguidance says what is wrong with it."""
    try:
        return json.dumps(exact(json.loads(source)))
    except (ValueError, RecursionError):
        return source


def exact(schema: Json) -> Json:
    """The same schema, new where it differs; `schema` is left as it is. Raises RecursionError some 300 levels deep, where
    llguidance takes none."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return schema
    says = {word: value for word, value in schema.items() if not _says_nothing(word, schema)}
    rewritten = {word: _value(word, value) for word, value in says.items()}
    form = rewritten.get("format")
    if isinstance(form, str) and form in _FORMATS:
        all_of = rewritten.get("allOf", [])
        if isinstance(all_of, list):
            del rewritten["format"]
            rewritten["allOf"] = [*all_of, {"pattern": _FORMATS[form]}]
    return rewritten


def _says_nothing(word: str, schema: dict[str, Json]) -> bool:
    if word == "uniqueItems":
        return schema[word] is False
    if word == "if":
        return "then" not in schema and "else" not in schema
    return word in _WITHOUT and _WITHOUT[word] not in schema


def _value(word: str, value: Json) -> Json:
    if word in _NAMED_SCHEMAS and isinstance(value, dict):
        names: Callable[[str], str] = _ecma if word == "patternProperties" else str
        return {names(name): inner if isinstance(inner, bool) else exact(inner) for name, inner in value.items()}
    if word in _LISTS_OF_SCHEMAS and isinstance(value, list):
        return [inner if isinstance(inner, bool) else exact(inner) for inner in value]
    if word in _SCHEMAS and isinstance(value, dict):
        return exact(value)
    if word in _COUNTS and isinstance(value, float) and value.is_integer():
        return int(value)
    return _ecma(value) if word == "pattern" and isinstance(value, str) else value


def _ecma(pattern: str) -> str:
    r"""`\s` and `\S` spelled out, within classes too, where Rust's regular expressions take classes."""
    pieces, place = [], 0
    while place < len(pattern):
        length = 2 if pattern[place] == "\\" else 1
        piece = pattern[place : place + length]
        pieces.append(_CLASSES.get(piece, piece))
        place += length
    return "".join(pieces)
