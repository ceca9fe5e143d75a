"""The fields that say what an answer must look like, `response_format` and `structured_outputs`, become one Grammar.

OpenAI's response_format (https://platform.openai.com/docs/guides/structured-outputs); vLLM 0.32's structured_outputs, and its
older `guided_*` names.
"""

from operator import attrgetter
from typing import Any, Literal

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest
from ipc.grammar import Grammar, fault_of


class JsonSchemaFormat(Struct):
    """`strict` changes nothing: every schema is enforced."""

    name: str
    schema: dict[str, Any] | None = None  # Any: JSON, here and below
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None


class StructuredOutputs(Struct):
    """vLLM's StructuredOutputsParams: exactly one of the first six."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None

    disable_any_whitespace: bool | None = False
    disable_additional_properties: bool | None = False
    disable_fallback: bool | None = False  # there is one backend
    whitespace_pattern: str | None = None


class StructuredFields(Struct, kw_only=True):
    """Of chats and completions."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


_FIELDS = attrgetter(*StructuredFields.__struct_fields__)
_NOTHING = (None,) * len(StructuredFields.__struct_fields__)


def asks_for_grammar(request: StructuredFields) -> bool:
    return _FIELDS(request) != _NOTHING


def grammar_or_none(request: StructuredFields) -> Grammar | None:
    """What the output must match. Raises InvalidRequest: two demands at once, or one that nothing can be held to."""
    if not asks_for_grammar(request):  # nearly always
        return None
    asked = {param: grammar for param, grammar in _grammars(request) if grammar is not None}
    if not asked:
        return None
    if len(asked) > 1:
        raise InvalidRequest(f"only one of {' and '.join(asked)} can be asked for", param=next(iter(asked)))
    [(param, grammar)] = asked.items()
    fault = fault_of(grammar)
    if fault is not None:
        raise InvalidRequest(f"{param}: {fault}", param=param)
    return grammar


def _grammars(request: StructuredFields) -> list[tuple[str, Grammar | None]]:
    return [
        ("response_format", _of_response_format(request.response_format)),
        *_of_structured_outputs(request.structured_outputs),
        ("guided_json", _of_schema(request.guided_json)),
        ("guided_regex", _of_text("regex", request.guided_regex)),
        ("guided_choice", _of_choice("guided_choice", request.guided_choice)),
        ("guided_grammar", _of_text("ebnf", request.guided_grammar)),
    ]


def _of_response_format(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return Grammar("json_object")
    if asked.type == "structural_tag":
        return _of_structural_tag(asked)
    if asked.json_schema is None:
        raise InvalidRequest("response_format.json_schema is missing", param="response_format.json_schema")
    if asked.json_schema.schema is None:
        return Grammar("json_object")
    return _of_schema(asked.json_schema.schema)


def _of_structural_tag(asked: ResponseFormat) -> Grammar:
    if asked.format is not None:
        raise InvalidRequest(
            "response_format.format is not supported: send `structures` and `triggers`", param="response_format.format"
        )
    if asked.structures is None or asked.triggers is None:
        raise InvalidRequest("a structural_tag needs `structures` and `triggers`", param="response_format")
    return Grammar("structural_tag", _json({"structures": asked.structures, "triggers": asked.triggers}))


def _of_structured_outputs(asked: StructuredOutputs | None) -> list[tuple[str, Grammar | None]]:
    if asked is None:
        return []
    prefix = "structured_outputs."
    for option in ("disable_additional_properties", "whitespace_pattern"):
        if getattr(asked, option):
            raise InvalidRequest(f"{prefix}{option} is not supported by this server", param=prefix + option)
    grammars = [
        (prefix + "json", _of_schema(asked.json)),
        (prefix + "regex", _of_text("regex", asked.regex)),
        (prefix + "choice", _of_choice(prefix + "choice", asked.choice)),
        (prefix + "grammar", _of_text("ebnf", asked.grammar)),
        (prefix + "json_object", Grammar("json_object") if asked.json_object else None),
        (prefix + "structural_tag", _of_text("structural_tag", asked.structural_tag)),
    ]
    if all(grammar is None for _, grammar in grammars):
        raise InvalidRequest("structured_outputs asks for nothing", param="structured_outputs")
    if asked.disable_any_whitespace:
        return [(param, None if one is None else _compact(one)) for param, one in grammars]
    return grammars


def _compact(grammar: Grammar) -> Grammar:
    """White space between the tokens of JSON is all that could be meant."""
    return Grammar(grammar.kind, grammar.source, grammar.kind in ("json_object", "json_schema"))


def _of_schema(schema: str | dict[str, Any] | None) -> Grammar | None:
    if schema is None:
        return None
    return Grammar("json_schema", schema if isinstance(schema, str) else _json(schema))


def _of_text(kind: Literal["regex", "ebnf", "structural_tag"], text: str | None) -> Grammar | None:
    return None if text is None else Grammar(kind, text)


def _of_choice(param: str, choice: list[str] | None) -> Grammar | None:
    if choice is None:
        return None
    if not choice or not all(choice):
        raise InvalidRequest(f"{param} must be a list of texts that are not empty", param=param)
    return Grammar("choice", _json(choice))


def _json(content: object) -> str:
    return msgspec.json.encode(content).decode()
