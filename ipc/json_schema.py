"""A JSON schema in words that llguidance holds to exactly as the standard means them; in worker and engine, no state.

llguidance 1.9.1 lets through a 29 February of any year, a leap second at any hour, and U+FEFF as something other than white
space; it refuses keywords that say nothing where they stand, and whole numbers that are written 2.0. Found with the JSON
Schema Test Suite.
"""

import json
from collections.abc import Callable
from typing import Any

from ipc.address_patterns import IRI, IRI_REFERENCE, URI_REFERENCE, URI_TEMPLATE
from ipc.schema_keywords import one_of_said_otherwise, said_otherwise

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
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
    "uri-reference": f"^{URI_REFERENCE}$",
    "uri-template": f"^{URI_TEMPLATE}$",
    "iri": f"^{IRI}$",
    "iri-reference": f"^{IRI_REFERENCE}$",
}
"""https://www.rfc-editor.org/rfc/rfc3339#section-5.6, RFC 6901, https://json-schema.org/draft/2020-12 (7.3.7), RFC 3986,
RFC 6570, RFC 3987."""

_SPACES = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
_CLASSES = {r"\s": f"[{_SPACES}]", r"\S": f"[^{_SPACES}]"}
"""ECMA-262's white space, which is not Unicode's."""

_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_SCHEMAS = frozenset({"items", "additionalProperties", "additionalItems"})
_LISTS_OF_SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})


MAX_SCHEMAS = 20_000
"""In one document, rewritten: what stands in several alternatives is written several times."""


def exact_source(source: str, *, one_of_is_known: bool = True) -> str:
    """The same schema for llguidance. What is no JSON, or grows too long, stays as it is: llguidance says what is wrong.
    `one_of_is_known`: llguidance can tell by itself that no two branches of any oneOf fit the same."""
    try:
        return json.dumps(exact(json.loads(source), one_of_is_known=one_of_is_known))
    except (ValueError, RecursionError):
        return source


def exact(schema: Json, *, one_of_is_known: bool = True) -> Json:
    """The same schema, new where it differs; `schema` is left as it is. Raises RecursionError some 300 levels deep, where
    llguidance takes none."""
    if schema is True:
        return {}
    return _Rewriting(schema, one_of_is_known).of(schema)


class _Rewriting:
    """Of one document."""

    def __init__(self, root: Json, one_of_is_known: bool) -> None:
        self._root, self._one_of_is_known = root, one_of_is_known
        self._num_left = MAX_SCHEMAS

    def of(self, schema: Json) -> Json:
        if not isinstance(schema, dict):
            return schema
        self._num_left -= 1
        if self._num_left < 0:
            raise ValueError(f"more than {MAX_SCHEMAS} schemas")
        said = said_otherwise(schema, self._root)
        if not self._one_of_is_known:
            said = one_of_said_otherwise(said)
        rewritten = {word: self._value(word, value) for word, value in said.items()}
        form = rewritten.get("format")
        if isinstance(form, str) and form in _FORMATS:
            all_of = rewritten.get("allOf", [])
            if isinstance(all_of, list):
                del rewritten["format"]
                rewritten["allOf"] = [*all_of, {"pattern": _FORMATS[form]}]
        return rewritten

    def _value(self, word: str, value: Json) -> Json:
        if word in _NAMED_SCHEMAS and isinstance(value, dict):
            names: Callable[[str], str] = _ecma if word == "patternProperties" else str
            return {names(name): self.of(inner) for name, inner in value.items()}
        if word in _LISTS_OF_SCHEMAS and isinstance(value, list):
            return [self.of(inner) for inner in value]
        if word in _SCHEMAS and isinstance(value, dict):
            return self.of(value)
        if word in _COUNTS and isinstance(value, float) and value.is_integer():
            return int(value)
        return _ecma(value) if word == "pattern" and isinstance(value, str) else value


def _ecma(pattern: str) -> str:
    r"""`\s`, `\S` and `\cX` spelled out, within classes too, where Rust's regular expressions take classes."""
    pieces, place = [], 0
    while place < len(pattern):
        length = 2 if pattern[place] == "\\" else 1
        piece = pattern[place : place + length]
        if piece == r"\c" and (letter := pattern[place + 2 : place + 3]).isascii() and letter.isalpha():
            piece, length = rf"\x{ord(letter) % 32:02X}", 3
        pieces.append(_CLASSES.get(piece, piece))
        place += length
    return "".join(pieces)
