"""Answers that are held to a form, of which only one or few texts are."""

from typing import Any

from tests.oracle.cases.case import Case, chat, completion

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ann", "Bob"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAG = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": PERSON, "end": "</a>"}], "triggers": ["<a>"]}


def schema(of: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of, **fields}}


CASES: list[Case] = [
    chat("structure/text", response_format={"type": "text"}),
    chat("structure/json-object", response_format={"type": "json_object"}, max_tokens=24),
    chat("structure/json-schema", response_format=schema(PERSON), max_tokens=40),
    chat("structure/json-schema-strict", response_format=schema(PERSON, strict=True), max_tokens=40),
    chat("structure/json-schema-cut", response_format=schema(PERSON), max_tokens=4),
    chat("structure/json-schema-without-schema", response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
    chat("structure/json-schema-without-anything", response_format={"type": "json_schema"}),
    chat(
        "structure/json-schema-without-name", response_format={"type": "json_schema", "json_schema": {"schema": PERSON}}
    ),
    chat("structure/json-schema-of-no-type", response_format=schema({"type": "smell"})),
    chat("structure/json-schema-of-a-number", response_format=schema(5)),
    chat("structure/format-unknown", response_format={"type": "xml"}),
    chat("structure/format-of-text", response_format="json"),
    chat("structure/choice", structured_outputs={"choice": ["Paris", "London"]}),
    chat(
        "structure/choice-cut",
        structured_outputs={"choice": ["Constantinople, the old city", "Constantinople, the new one"]},
        max_tokens=3,
    ),
    chat(
        "structure/choice-logprobs", structured_outputs={"choice": ["Paris", "London"]}, logprobs=True, top_logprobs=1
    ),
    chat("structure/choice-to-the-last-token", structured_outputs={"choice": ["Paris"]}, max_tokens=1),
    chat("structure/regex", structured_outputs={"regex": "[0-9]{4}-[0-9]{2}"}, max_tokens=16),
    chat("structure/regex-that-is-none", structured_outputs={"regex": "(["}),
    chat("structure/json", structured_outputs={"json": PERSON}, max_tokens=40),
    chat("structure/grammar", structured_outputs={"grammar": 'root ::= "yes" | "no"'}),
    chat("structure/grammar-that-is-none", structured_outputs={"grammar": "root ::= ("}),
    chat("structure/choice-empty", structured_outputs={"choice": []}),
    chat("structure/nothing", structured_outputs={}),
    chat("structure/two-forms", structured_outputs={"choice": ["a"], "regex": "a"}),
    chat("structure/form-and-format", structured_outputs={"choice": ["Paris"]}, response_format={"type": "text"}),
    chat("structure/structural-tag-unused", response_format=TAG),
    completion("structure/completion-choice", structured_outputs={"choice": [" Paris", " London"]}),
    completion("structure/completion-regex", structured_outputs={"regex": " [A-Z][a-z]{3,5}"}),
    completion("structure/completion-json-schema", response_format=schema(PERSON), max_tokens=40),
    completion("structure/completion-json-object", response_format={"type": "json_object"}, max_tokens=16),
    completion("structure/completion-stop-in-form", structured_outputs={"choice": ["abcdef"]}, stop=["c"]),
    completion(
        "structure/completion-two-prompts",
        prompt=["The sky is", "Grass is"],
        structured_outputs={"choice": [" blue", " green"]},
    ),
]
