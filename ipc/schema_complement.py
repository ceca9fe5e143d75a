"""The complement of a JSON schema: a schema that takes exactly what another one refuses. In worker and engine, no state.

Not every schema has one that can be written down: there is none of a pattern, a format, or what holds for every item.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

Json = Any  # whatever JSON there is

TYPES = ("object", "array", "string", "number", "boolean", "null")
SAYS_NOTHING = frozenset(
    {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$schema"}
)
_BEYOND = {"minimum": "exclusiveMaximum", "exclusiveMinimum": "maximum", "maximum": "exclusiveMinimum",
    "exclusiveMaximum": "minimum"}  # fmt: skip
_COUNTS = {"Length": "string", "Items": "array", "Properties": "object"}


def complement_or_none(schema: Json, *, numbers_are_whole: bool = False) -> Json | None:
    """True and False are schemas too. None: it cannot be said. `numbers_are_whole`: it will only be asked about those, and
    else about anything."""
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, dict):
        return None
    return any_of(
        _of_keyword(word, value, numbers_are_whole) for word, value in schema.items() if word not in SAYS_NOTHING
    )  # what one keyword refuses, all together refuse


def has_whole_numbers_only(schema: Json) -> bool:
    """As its type says, of itself: what it takes is no fraction."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    return kinds is not None and "number" not in ([kinds] if isinstance(kinds, str) else kinds)


def any_of(schemas: Iterable[Json | None]) -> Json | None:
    """None where one of them is None."""
    kept = []
    for schema in schemas:
        if schema is None:
            return None
        if schema is True or schema == {}:
            return True
        if schema is not False:
            kept.append(schema)
    return (kept[0] if len(kept) == 1 else {"anyOf": kept}) if kept else False


def all_of(schemas: Iterable[Json | None]) -> Json | None:
    """None where one of them is None."""
    kept = []
    for schema in schemas:
        if schema is None:
            return None
        if schema is False:
            return False
        if schema is not True and schema != {}:
            kept.append(schema)
    return (kept[0] if len(kept) == 1 else {"allOf": kept}) if kept else True


def _of_keyword(word: str, value: Json, numbers_are_whole: bool) -> Json | None:
    if word in _BEYOND and _is_number(value):
        return {"type": "number", _BEYOND[word]: value}
    if word[:3] in ("min", "max") and word[3:] in _COUNTS and _is_number(value):
        return _of_count(word[:3], word[3:], value)
    match word, value:
        case "type", str():
            return _of_types([value], numbers_are_whole)
        case "type", list():
            return _of_types(value, numbers_are_whole)
        case "const", _:
            return _of_values([value])
        case "enum", list():
            return _of_values(value)
        case "required", list():
            return any_of({"type": "object", "properties": {name: False}} for name in value)
        case "properties", dict():
            return any_of(_of_property(name, inner) for name, inner in value.items())
        case "prefixItems", list():
            return any_of(_of_item(place, inner) for place, inner in enumerate(value))
        case "allOf", list():
            return any_of(complement_or_none(inner, numbers_are_whole=numbers_are_whole) for inner in value)
        case "anyOf", list():
            return all_of(complement_or_none(inner, numbers_are_whole=numbers_are_whole) for inner in value)
        case "not", _:
            return value
        case "items" | "additionalProperties", _ if value is True or value == {}:
            return False
    return None


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_count(bound: str, what: str, count: Json) -> Json | None:
    if isinstance(count, float) and not count.is_integer():
        return None
    kind = _COUNTS[what]
    if bound == "max":
        return {"type": kind, f"min{what}": int(count) + 1}
    return {"type": kind, f"max{what}": int(count) - 1} if count > 0 else False


def _of_types(types: list[Json], numbers_are_whole: bool) -> Json | None:
    """None where whole numbers are meant and fractions would be left: they cannot be named."""
    if numbers_are_whole:
        types = ["number" if kind == "integer" else kind for kind in types]
    if not all(isinstance(kind, str) for kind in types) or ("integer" in types and "number" not in types):
        return None
    return {"type": others} if (others := [kind for kind in TYPES if kind not in types]) else False


def _of_property(name: str, schema: Json) -> Json | None:
    inner = complement_or_none(schema)
    if inner is None or inner is False:
        return inner
    return {"type": "object", "properties": {name: inner}, "required": [name]}


def _of_item(place: int, schema: Json) -> Json | None:
    inner = complement_or_none(schema)
    if inner is None or inner is False:
        return inner
    return {"type": "array", "prefixItems": [*[{}] * place, inner], "minItems": place + 1}


def _of_values(values: list[Json]) -> Json | None:
    """Of everything but these; None where one of them is a list or an object."""
    if any(isinstance(value, list | dict) for value in values):
        return None
    texts = [value for value in values if isinstance(value, str)]
    numbers = sorted({value for value in values if _is_number(value)})
    truths = {value for value in values if isinstance(value, bool)}
    others: list[Json] = [{"type": "array"}, {"type": "object"}]
    others += [{"type": "string", "pattern": f"^{_other_than(texts)}$"} if texts else {"type": "string"}]
    bounds = [None, *numbers, None]
    others += [_between(low, high) for low, high in pairwise(bounds)]
    others += [{"const": truth} for truth in (False, True) if truth not in truths]
    others += [] if None in values else [{"type": "null"}]
    return {"anyOf": others}


def _between(low: Json | None, high: Json | None) -> Json:
    bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
    return {"type": "number", **{word: bound for word, bound in bounds.items() if bound is not None}}


_ANY = r"(?s:.)"


def _other_than(texts: list[str]) -> str:
    """A regular expression of every text but these, character by character."""
    rests: dict[str, list[str]] = {}
    for text in texts:
        if text:
            rests.setdefault(text[0], []).append(text[1:])
    ways = [] if "" in texts else [""]
    if rests:
        ways += [f"[^{''.join(map(_literal, rests))}]{_ANY}*"]
        ways += [_literal(first) + _other_than(others) for first, others in rests.items()]
    else:
        ways += [f"{_ANY}+"]
    return f"(?:{'|'.join(ways)})"


def _literal(character: str) -> str:
    return f"\\{character}" if character in r"\.+*?()|[]{}^$-&~#" else character
