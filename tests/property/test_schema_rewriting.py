"""What a schema is rewritten to for llguidance takes an instance exactly when jsonschema does."""

import json
from itertools import permutations
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from ipc.grammar import Grammar, fault_of, llguidance_source
from ipc.schema_complement import complement_or_none

BYTES = LLTokenizer("byte")
NAMES = st.sampled_from(["a", "b", "ab"])
SCALARS = st.sampled_from(["", "a", "ab", "ba", "b", 0, 1, 2, 1.5, True, False, None])
INSTANCES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)
COUNTS = st.integers(0, 2)
LEAVES = st.one_of(
    st.booleans(),
    st.fixed_dictionaries({"type": st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])}),
    st.fixed_dictionaries({"type": st.lists(st.sampled_from(["object", "string", "number"]), min_size=1, unique=True)}),
    st.fixed_dictionaries({"const": SCALARS}),
    st.fixed_dictionaries({"enum": st.lists(SCALARS, min_size=1, max_size=3)}),
    *(
        st.fixed_dictionaries({word: COUNTS})
        for word in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength",
            "minItems", "maxItems", "minProperties", "maxProperties")
    ),
    st.fixed_dictionaries({"required": st.lists(NAMES, min_size=1, max_size=2, unique=True)}),
    st.fixed_dictionaries({"pattern": st.sampled_from(["^a", "b$"])}),
)  # fmt: skip


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(NAMES, inner, min_size=1, max_size=2)
    some = st.lists(inner, min_size=1, max_size=3)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "not": inner, "allOf": some, "anyOf": some, "oneOf": some, "if": inner, "then": inner, "else": inner,
        "properties": named, "dependentSchemas": named, "additionalProperties": inner, "items": inner,
        "prefixItems": some, "unevaluatedProperties": inner, "unevaluatedItems": inner,
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "propertyNames": st.sampled_from([True, False, {"pattern": "^a"}, {"maxLength": 1}, {"enum": ["a", "b"]}]),
        "contains": st.sampled_from([True, {}]), "minContains": COUNTS, "maxContains": COUNTS,
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional=keywords).filter(lambda schema: 1 <= len(schema) <= 3)


SCHEMAS: st.SearchStrategy[Any] = st.deferred(lambda: LEAVES | compound(SCHEMAS))


def writings(value: Any) -> list[str]:
    """Keys in every order: a grammar has them in its own."""
    if isinstance(value, list):
        written = [""]
        for place, item in enumerate(value):
            comma = "," if place else ""
            written = [before + comma + text for before in written for text in writings(item)]
        return [f"[{text}]" for text in written]
    if isinstance(value, dict):
        found = []
        for order in permutations(value):
            written = [""]
            for place, name in enumerate(order):
                comma = "," if place else ""
                written = [f'{before}{comma}"{name}":{text}' for before in written for text in writings(value[name])]
            found += [f"{{{text}}}" for text in written]
        return found
    return [json.dumps(value)]


def source_or_none(schema: Any) -> str | None:
    grammar = Grammar("json_schema", json.dumps(schema))
    return None if fault_of(grammar) else llguidance_source(grammar)


def takes(source: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, source, log_level=0)
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, instances=st.lists(INSTANCES, min_size=8, max_size=8))
def test_a_schema_takes_what_it_means(schema: Any, instances: list[Any]) -> None:
    source = source_or_none(schema)
    event("refused" if source is None else "compiled")
    if source is None:
        return

    validator = Draft202012Validator(schema)
    for instance in instances:
        assert any(takes(source, text) for text in writings(instance)) == validator.is_valid(instance), instance


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, instances=st.lists(INSTANCES, min_size=8, max_size=8))
def test_a_complement_takes_what_the_schema_refuses(schema: Any, instances: list[Any]) -> None:
    complement = complement_or_none(schema)
    event("none" if complement is None else "there")
    if complement is None:
        return

    for instance in instances:
        is_valid = Draft202012Validator(schema).is_valid(instance)
        assert Draft202012Validator(complement).is_valid(instance) != is_valid, instance
