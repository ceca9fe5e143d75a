"""Keywords of JSON Schema that llguidance 1.9.1 does not know, said by those that it does: exactly, or not at all.

What cannot be said stays as it stands, and llguidance refuses it by name. In worker and engine, no state.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from typing import Any

from msgspec import Struct

from ipc.schema_complement import all_of, any_of, complement_or_none, has_whole_numbers_only

Json = Any  # whatever JSON there is
Schema = dict[str, Json]

MAX_ALTERNATIVES = 32
MAX_BRANCHES = 4  # of an anyOf, each of whose subsets is an alternative
MAX_DEPTH = 16  # of schemas applied in place, references among them
_TRIVIAL_CONTAINS: tuple[Json, ...] = (True, {})


def said_otherwise(schema: Schema, root: Json) -> Schema:
    """The same, new where it differs. `root` is the document, where references lead."""
    rest, added = dict(schema), list[Json]()
    for words, say in _WAYS:
        if not any(word in rest for word in words):
            continue
        said = say(rest, root)
        if said is None:
            continue
        for word in words:
            rest.pop(word, None)
        if said is not True:
            added.append(said)
    if not added:
        return rest
    all_of_it = rest.get("allOf", [])
    return {**rest, "allOf": [*all_of_it, *added]} if isinstance(all_of_it, list) else schema


def one_of_said_otherwise(schema: Schema) -> Schema:
    """`oneOf` as what fits one and none of the others."""
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or len(branches) > MAX_ALTERNATIVES:
        return schema

    def but_the_others(place: int, branch: Json) -> Json | None:
        is_whole = has_whole_numbers_only(schema) or has_whole_numbers_only(branch)
        others = [*branches[:place], *branches[place + 1 :]]
        return all_of([branch, *(complement_or_none(other, numbers_are_whole=is_whole) for other in others)])

    ways = [but_the_others(place, branch) for place, branch in enumerate(branches)]
    said = any_of(ways)
    if said is None:
        return schema
    rest = {word: value for word, value in schema.items() if word != "oneOf"}
    return {**rest, "allOf": [*rest.get("allOf", []), said]}


# ── one keyword each: what it says, True where that is nothing, None where it cannot be said ──────────────────────────


def _not(schema: Schema, _root: Json) -> Json | None:
    return complement_or_none(schema["not"], numbers_are_whole=has_whole_numbers_only(schema))


def _if(schema: Schema, _root: Json) -> Json | None:
    if "if" not in schema or ("then" not in schema and "else" not in schema):
        return True
    condition, then, otherwise = schema["if"], schema.get("then", True), schema.get("else", True)
    is_not = complement_or_none(condition, numbers_are_whole=has_whole_numbers_only(schema))
    return any_of([all_of([condition, then]), all_of([is_not, otherwise])])


def _dependent_required(schema: Schema, _root: Json) -> Json | None:
    return _dependencies(schema["dependentRequired"], takes=list)


def _dependent_schemas(schema: Schema, _root: Json) -> Json | None:
    return _dependencies(schema["dependentSchemas"], takes=dict | bool)


def _dependencies_of_old(schema: Schema, _root: Json) -> Json | None:
    return _dependencies(schema["dependencies"], takes=list | dict | bool)


def _dependencies(wanted: Json, takes: Any) -> Json | None:
    if not isinstance(wanted, dict) or not all(isinstance(what, takes) for what in wanted.values()):
        return None
    return all_of(any_of(ways) for ways in (_with_or_without(name, what) for name, what in wanted.items()))


def _with_or_without(name: str, what: Json) -> list[Json]:
    """Without the property, or with it and what depends on it."""
    if isinstance(what, list):
        return [{"properties": {name: False}}, {"required": [name, *(other for other in what if other != name)]}]
    return [{"properties": {name: False}}, all_of([{"required": [name]}, what])]


def _property_names(schema: Schema, _root: Json) -> Json | None:
    names = schema["propertyNames"]
    if isinstance(names, bool):
        return names or {"maxProperties": 0}
    if not isinstance(names, dict):
        return None
    return all_of(_of_names(word, value) for word, value in names.items())


def _of_names(word: str, value: Json) -> Json | None:
    match word, value:
        case "type", "string":
            return True
        case "pattern", str():
            return {"patternProperties": {value: {}}, "additionalProperties": False}
        case "minLength", int():
            return {"patternProperties": {f"^(?s:.){{{value},}}$": {}}, "additionalProperties": False}
        case "maxLength", int():
            return {"patternProperties": {f"^(?s:.){{0,{value}}}$": {}}, "additionalProperties": False}
        case "const", str():
            return {"properties": {value: {}}, "additionalProperties": False}
        case "enum", list() if all(isinstance(name, str) for name in value):
            return {"properties": {name: {} for name in value}, "additionalProperties": False}
    return None


def _contains(schema: Schema, _root: Json) -> Json | None:
    """Where every item counts, or none has to."""
    if "contains" not in schema:
        return True
    least, most = schema.get("minContains", 1), schema.get("maxContains")
    if least == 0 and most is None:
        return True
    if schema["contains"] not in _TRIVIAL_CONTAINS:
        return None
    return {"minItems": least} if most is None else {"minItems": least, "maxItems": most}


def _unique_items(schema: Schema, _root: Json) -> Json | None:
    most = schema.get("maxItems")
    is_short = isinstance(most, int) and most <= 1
    return True if schema["uniqueItems"] is False or is_short else None


# ── what is evaluated ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Evaluated(Struct, frozen=True):
    """What keywords beside and in-place below a schema look at, where the `chosen` schemas hold too."""

    chosen: tuple[Json, ...] = ()
    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    has_all_properties: bool = False
    num_items: int = 0
    has_all_items: bool = False

    def beside(self, other: "_Evaluated") -> "_Evaluated":
        return _Evaluated(
            (*self.chosen, *other.chosen),
            self.names | other.names,
            self.patterns | other.patterns,
            self.has_all_properties or other.has_all_properties,
            max(self.num_items, other.num_items),
            self.has_all_items or other.has_all_items,
        )


class _Unsayable(Exception):
    """What is evaluated is not known beforehand."""


def _unevaluated_properties(schema: Schema, root: Json) -> Json | None:
    def held(evaluated: _Evaluated) -> Json:
        if evaluated.has_all_properties:
            return True
        return {
            "properties": {name: {} for name in sorted(evaluated.names)},
            "patternProperties": {pattern: {} for pattern in sorted(evaluated.patterns)},
            "additionalProperties": schema["unevaluatedProperties"],
        }

    return _unevaluated("unevaluatedProperties", schema, root, held)


def _unevaluated_items(schema: Schema, root: Json) -> Json | None:
    def held(evaluated: _Evaluated) -> Json:
        if evaluated.has_all_items:
            return True
        return {"prefixItems": [{}] * evaluated.num_items, "items": schema["unevaluatedItems"]}

    return _unevaluated("unevaluatedItems", schema, root, held)


def _unevaluated(word: str, schema: Schema, root: Json, held: Callable[[_Evaluated], Json]) -> Json | None:
    if schema[word] in (True, {}):
        return True
    rest = {other: value for other, value in schema.items() if other != word}
    try:
        found = _evaluated(rest, root, 0)
    except _Unsayable:
        return None
    return any_of(all_of([*evaluated.chosen, held(evaluated)]) for evaluated in found)


def _evaluated(schema: Json, root: Json, depth: int) -> list[_Evaluated]:
    """One for each way in which the schema may hold. Where several hold, what is unevaluated in all of them together is so in
    each, so that one way that allows an instance suffices."""
    if isinstance(schema, bool):
        return [_Evaluated()] if schema else []
    if not isinstance(schema, dict) or depth > MAX_DEPTH or "contains" in schema or "$dynamicRef" in schema:
        raise _Unsayable
    own = _Evaluated(
        names=frozenset(schema.get("properties", ())),
        patterns=frozenset(schema.get("patternProperties", ())),
        has_all_properties="additionalProperties" in schema or "unevaluatedProperties" in schema,
        num_items=len(schema.get("prefixItems", ())),
        has_all_items="items" in schema or "unevaluatedItems" in schema,
    )
    return _together([[own], *_applied(schema, root, depth + 1)])


def _applied(schema: Schema, root: Json, depth: int) -> Iterator[list[_Evaluated]]:
    """By each keyword that applies schemas in place: the ways in which they may hold."""

    def ways_of(inner: Json) -> list[_Evaluated]:
        return [_Evaluated((inner,)).beside(way) for way in _evaluated(inner, root, depth)]

    for inner in schema.get("allOf", ()):
        yield _evaluated(inner, root, depth)
    if (branches := schema.get("anyOf")) is not None:
        if len(branches) > MAX_BRANCHES:
            raise _Unsayable
        each = [ways_of(branch) for branch in branches]
        sizes = range(1, len(branches) + 1)
        yield [way for size in sizes for some in combinations(each, size) for way in _together(some)]
    if (branches := schema.get("oneOf")) is not None:
        yield [way for branch in branches for way in ways_of(branch)]
    if "if" in schema:
        otherwise = complement_or_none(schema["if"], numbers_are_whole=has_whole_numbers_only(schema))
        if otherwise is None:
            raise _Unsayable
        then = _together([ways_of(schema["if"]), ways_of(schema.get("then", True))])
        yield [*then, *_together([[_Evaluated((otherwise,))], ways_of(schema.get("else", True))])]
    for name, inner in schema.get("dependentSchemas", {}).items():
        without, _ = _with_or_without(name, inner)
        yield [_Evaluated((without,)), *_together([[_Evaluated(({"required": [name]},))], ways_of(inner)])]
    if (reference := schema.get("$ref")) is not None:
        yield _evaluated(_target(reference, root), root, depth)


def _together(schemas: Iterable[list[_Evaluated]]) -> list[_Evaluated]:
    """The ways in which some schemas may hold, those of each given."""
    ways = [_Evaluated()]
    for others in schemas:
        ways = [way.beside(other) for way, other in product(ways, others)]
        if len(ways) > MAX_ALTERNATIVES:
            raise _Unsayable
    return ways


def _target(reference: Json, root: Json) -> Json:
    """Of a reference into this document by the place."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise _Unsayable
    node = root
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or name not in node or ("$id" in node and node is not root):
            raise _Unsayable
        node = node[name]
    if isinstance(node, dict) and "$id" in node:
        raise _Unsayable
    return node


_WAYS: tuple[tuple[tuple[str, ...], Callable[[Schema, Json], Json | None]], ...] = (
    (("unevaluatedProperties",), _unevaluated_properties),  # these two before what they have to look at is gone
    (("unevaluatedItems",), _unevaluated_items),
    (("not",), _not),
    (("if", "then", "else"), _if),
    (("dependentRequired",), _dependent_required),
    (("dependentSchemas",), _dependent_schemas),
    (("dependencies",), _dependencies_of_old),
    (("propertyNames",), _property_names),
    (("contains", "minContains", "maxContains"), _contains),
    (("uniqueItems",), _unique_items),
)
