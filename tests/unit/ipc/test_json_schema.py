"""What a schema is rewritten to lets through what the standard does, and nothing more."""

import json
import time
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from ipc.grammar import Grammar, fault_of, llguidance_source
from ipc.json_schema import exact, exact_source

BYTES = LLTokenizer("byte")


def takes(schema: object, text: str) -> bool:
    """Whether an answer held to the schema may be this JSON."""
    grammar = Grammar("json_schema", json.dumps(schema))
    assert fault_of(grammar) is None
    matcher = LLMatcher(BYTES, llguidance_source(grammar), log_level=0)
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("form", "good", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "0004-02-29", "1999-12-31"],
         ["2023-02-29", "1900-02-29", "2024-02-30", "2024-04-31", "2024-13-01", "0000-01-01", "2024-1-01"]),
        ("time", ["23:59:59Z", "00:00:00.125+05:30"], ["23:59:60Z", "22:59:60Z", "24:00:00Z", "12:00:00", "12:00Z"]),
        ("date-time", ["2024-02-29T10:00:00Z", "2023-02-28t10:00:00.5-08:00"],
         ["2023-02-29T10:00:00Z", "2024-02-29 10:00:00Z", "2024-02-29T10:00:60Z", "2024-02-29"]),
    ],
)  # fmt: skip
def test_dates_and_times_exist(form: str, good: list[str], wrong: list[str]) -> None:
    schema = {"type": "string", "format": form}

    assert [text for text in good if not takes(schema, json.dumps(text))] == []
    assert [text for text in wrong if takes(schema, json.dumps(text))] == []


def test_a_format_is_held_beside_a_pattern_and_wherever_a_schema_stands() -> None:
    date = {"type": "string", "format": "date", "pattern": "^2", "allOf": [{"pattern": "1$"}]}
    schema = {"type": "array", "prefixItems": [{"anyOf": [{"$ref": "#/$defs/date"}]}], "$defs": {"date": date},
        "items": False}  # fmt: skip

    assert takes(schema, '["2024-02-01"]')
    assert not any(takes(schema, f'["{date}"]') for date in ("1999-02-01", "2024-02-02", "2023-02-31"))


def test_values_and_names_that_look_like_keywords_are_left_alone() -> None:
    schema = {"properties": {"format": {"const": {"format": "date", "minItems": 2.0}}, "if": {"enum": [{"if": 1}]}},
        "required": ["format", "if"], "additionalProperties": False}  # fmt: skip

    assert exact(schema) == schema


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (r"^\s$", "\ufeff", True),
        (r"^\S$", "\ufeff", False),
        (r"^\s$", "\u0085", False),
        (r"^[^\s]$", "\ufeff", False),
        (r"^[\S\s]$", "\ufeff", True),
        (r"^\\s$", "\\s", True),
        (r"^\\s$", "\\ ", False),
    ],
)
def test_white_space_is_that_of_ecma_262(pattern: str, text: str, fits: bool) -> None:
    assert takes({"type": "string", "pattern": pattern}, json.dumps(text, ensure_ascii=False)) is fits
    assert takes({"type": "object", "patternProperties": {pattern: {"const": 1}}, "additionalProperties": False},
        json.dumps({text: 1}, ensure_ascii=False)) is fits  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (True, "[1]"),
        ({"type": "array", "uniqueItems": False}, "[1, 1]"),
        ({"if": {"const": 0}, "type": "integer"}, "3"),
        ({"then": {"const": 0}, "else": {"const": 1}, "type": "integer"}, "3"),
        ({"minContains": 1, "maxContains": 2, "type": "array"}, "[]"),
        ({"type": "array", "minItems": 2.0, "maxItems": 2.0}, "[1, 1]"),
    ],
)
def test_keywords_that_say_nothing_are_in_nobodys_way(schema: object, text: str) -> None:
    assert takes(schema, text)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {"pattern": "a"}, "then": {"const": 0}}, "if"),
        ({"type": "array", "contains": {"const": 0}, "minContains": 2}, "minContains"),
        ({"type": "array", "minItems": 2.5}, "minItems"),
        ({"type": "string", "format": "date", "allOf": 5}, "allOf"),
        ({"type": "string", "pattern": 5}, "pattern"),
        (False, "object schema"),
    ],
)
def test_keywords_that_cannot_be_held_to_are_refused(schema: object, word: str) -> None:
    fault = fault_of(Grammar("json_schema", json.dumps(schema)))

    assert fault is not None and word.lower() in fault.lower()


@pytest.mark.parametrize("source", ["{", "[" * 100_000, '{"items": ' * 400 + "{}" + "}" * 400])
def test_what_cannot_be_read_is_refused_in_one_line(source: str) -> None:
    assert exact_source(source) == source
    assert "\n" not in (fault_of(Grammar("json_schema", source)) or "\n")


URI_GROUP = ["//foo.bar/?baz=qux#quux", "http://foo.bar/?q=Test%20URL-encoded%20stuff", "http://223.255.255.254",
    "http://[::ffff:1.2.3.4]:80/x", "urn:oasis:names:specification:docbook:dtd:xml:4.1.2", "mailto:a@b.c",
    "/abc", "abc", "#f", ""]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "good", "wrong"),
    [
        ("json-pointer", ["", "/foo/0", "/a~1b~0", "/"], ["foo", "/a~", "/a~2", "#/foo"]),
        ("relative-json-pointer", ["1", "0/foo/bar", "2#", "120#"], ["", "-1", "01", "0##", "/foo"]),
        ("uri-reference", URI_GROUP, ["\\\\WINDOWS\\share", "a b", "ä", "http://[:1]", "%zz", "a:b:c d", ":a"]),
        ("iri", ["http://ƒøø.ßår/?∂éœ=πîx#πîüx", "urn:ä"], ["/abc", "âππ", "http://a b", "http://2001:db8::1:x"]),
        ("iri-reference", ["âππ", "#ƒräg", "//ƒ"], ["\\\\WINDOWS\\filëßåré", "a|b"]),
        ("uri-template", ["http://a/{term:1}/{+b*,c}{?q}", "", "{x.y}", "ä"], ["{term", "a}", "{}", "{a b}", "a'b", "{a:0}"]),
    ],
)  # fmt: skip
def test_addresses_are_of_their_grammars(form: str, good: list[str], wrong: list[str]) -> None:
    schema = {"type": "string", "format": form}

    assert [text for text in good if not takes(schema, json.dumps(text, ensure_ascii=False))] == []
    assert [text for text in wrong if takes(schema, json.dumps(text, ensure_ascii=False))] == []


@pytest.mark.parametrize(
    ("schema", "good", "wrong"),
    [
        ({"if": {"properties": {"k": {"const": "a"}}, "required": ["k"]}, "then": {"required": ["k", "x"]}},
         ['{"k":"b"}', '{"k":"a","x":1}', "3"], ['{"k":"a"}']),
        ({"not": {"enum": ["red", "rose", 3, None]}}, ['"re"', '"reds"', '"r"', '""', "3.5", "true"], ['"red"', "3", "null"]),
        ({"oneOf": [{"type": "string", "maxLength": 3}, {"type": ["string", "null"]}]}, ['"long"', "null"], ['"abc"', "1"]),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, ["{}", '{"b":1}', '{"a":1,"b":1}'], ['{"a":1}']),
        ({"type": "object", "dependentSchemas": {"a": {"maxProperties": 1}}}, ['{"a":1}', '{"b":1,"c":1}'], ['{"b":1,"a":1}']),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, ['{"xa":1}', "{}"], ['{"xab":1}']),
        ({"type": "array", "contains": {}, "maxContains": 2}, ["[1]", "[1,2]"], ["[]", "[1,2,3]"]),
        ({"allOf": [{"properties": {"a": {}}}], "anyOf": [{"properties": {"b": {"const": 1}}, "required": ["b"]}, True],
          "unevaluatedProperties": False}, ['{"a":1}', '{"a":1,"b":1}', "[]"], ['{"c":1}', '{"b":2}']),
        ({"$ref": "#/$defs/p", "unevaluatedItems": {"type": "null"}, "$defs": {"p": {"prefixItems": [True]}}},
         ["[1]", "[1,null]", "[]"], ["[1,1]"]),
        ({"type": "string", "pattern": "^\\cC$"}, ['"\\u0003"'], ['"C"']),
    ],
)  # fmt: skip
def test_keywords_that_llguidance_does_not_know_are_held_to(schema: object, good: list[str], wrong: list[str]) -> None:
    assert [text for text in good if not takes(schema, text)] == []
    assert [text for text in wrong if takes(schema, text)] == []


def test_a_schema_that_would_grow_without_end_is_refused_soon() -> None:
    schema: dict[str, Any] = {"properties": {"z": {}}}
    for depth in range(12):
        schema = {"anyOf": [{"properties": {f"a{depth}": True}}, schema], "unevaluatedProperties": False}
    started_s = time.monotonic()

    fault = fault_of(Grammar("json_schema", json.dumps(schema)))

    assert fault is not None and "unevaluatedProperties" in fault
    assert time.monotonic() - started_s < 5.0


def test_white_space_between_tokens_can_be_forbidden() -> None:
    source = llguidance_source(Grammar("json_schema", '{"type": "object", "properties": {"a": {}}}', is_compact=True))

    def is_taken(text: str) -> bool:
        matcher = LLMatcher(BYTES, source, log_level=0)
        return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())

    assert is_taken('{"a":[1,"x y"]}')
    assert not any(map(is_taken, ['{"a": 1}', '{ "a":1}', '{"a":[1, 2]}', '{"a":1}\n']))


def test_a_structural_tag_is_exact_too() -> None:
    schema: dict[str, Any] = {"type": "string", "format": "date"}
    tag = {"structures": [{"begin": "<d>", "schema": schema, "end": "</d>"}], "triggers": ["<d>"]}
    source = llguidance_source(Grammar("structural_tag", json.dumps(tag)))

    def begins(text: str) -> bool:
        return bool(LLMatcher(BYTES, source, log_level=0).consume_tokens(list(text.encode())))

    assert begins('<d>"2024-02-29"</d>')
    assert not begins('<d>"2023-02-29"</d>')
