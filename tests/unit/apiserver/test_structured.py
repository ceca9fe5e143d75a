"""The fields that ask for a form become one grammar."""

import json
import threading
from typing import Any

import pytest

from apiserver.schema.requests import decode_chat
from apiserver.schema.structured import grammar_or_none
from ipc.grammar import Grammar, fault_of
from tests.unit.apiserver.worker_rig import WorkerRig, error_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a>"]}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            Grammar("json_schema", json.dumps(SCHEMA, separators=(",", ":"))),
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, Grammar("json_object")),
        (
            {"response_format": {"type": "structural_tag", **TAG}},
            Grammar("structural_tag", json.dumps(TAG, separators=(",", ":"))),
        ),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"regex": "[a-z]+"}}, Grammar("regex", "[a-z]+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Grammar("choice", '["a","b"]')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar("ebnf", 'root ::= "a"')),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, Grammar("structural_tag", json.dumps(TAG))),
        ({"guided_regex": "a"}, Grammar("regex", "a")),
    ],
)
def test_each_way_to_ask_is_one_grammar(fields: dict[str, Any], grammar: Grammar | None) -> None:
    request = decode_chat(json.dumps({"messages": [], **fields}).encode())

    assert grammar_or_none(request) == grammar


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": "hi", "structured_outputs": {"regex": "[a-z]+"}}),
    ],
)
def test_a_grammar_is_checked_beside_the_loop(
    rig: WorkerRig, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    checked_by = []

    def fault(grammar: Grammar) -> str | None:
        checked_by.append(threading.current_thread())
        return "seen"

    monkeypatch.setattr("apiserver.schema.structured.fault_of", fault)
    monkeypatch.setattr("apiserver.tools.tool_use.fault_of", fault)

    assert "seen" in error_of(rig.post(path, body))["message"]
    assert [thread is threading.main_thread() for thread in checked_by] == [False]


def test_ebnf_whose_rewriting_would_take_long_is_refused() -> None:
    assert fault_of(Grammar("ebnf", 'root ::= "a"' + " " * 16 * 1024)) == "it has more than 16384 characters"


def test_a_form_that_is_nested_beyond_reason_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}}
    tag = {**TAG, "structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}]}

    assert fault_of(Grammar("structural_tag", json.dumps(tag))) == "it is nested too deeply"
