"""What an output must match: the form that travels from worker to engine, and the same as llguidance reads it.

llguidance (https://github.com/guidance-ai/llguidance) checks a grammar without a tokenizer, so that the worker can refuse a
wrong one; it compiles in some milliseconds, needs no other package, and refuses a JSON schema with a keyword that it would not
enforce. xgrammar 0.2.8, vLLM's first choice, imports transformers (2.5 s); vLLM keeps a list of the keywords it must not be
given (has_xgrammar_unsupported_json_features).
"""

import json
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from ipc.json_schema import exact, exact_source

Kind = Literal["json_object", "json_schema", "regex", "choice", "ebnf", "structural_tag"]

MAX_SOURCE_CHARS = 256 * 1024
MAX_EBNF_CHARS = 16 * 1024
"""Rewriting EBNF as Lark takes Python time that grows with the square of its length: 0.3 s for this much."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between JSON tokens. Bounded: a small model would otherwise indent until its tokens are used up."""

_UNKNOWN_ONE_OF = "oneOf constraints are not supported"


class Grammar(Struct, frozen=True, array_like=True):
    """`source` by kind: JSON of the schema; the regular expression; a JSON list of texts; EBNF as in GBNF, or Lark; JSON of the
    structural tag. An empty text for json_object. `is_compact`: JSON has no white space between its tokens."""

    kind: Kind
    source: str = ""
    is_compact: bool = False

    @property
    def known_source(self) -> str:
        """The same with schemas in words that llguidance knows. Raises ValueError as `llguidance_source`."""
        match self.kind:
            case "json_schema":
                return _known_schema(self.source)
            case "structural_tag":
                tag = _structural_tag(self.source)
                known = [structs.replace(tag, schema=exact(tag.schema)) for tag in tag.structures]
                return msgspec.json.encode(structs.replace(tag, structures=known)).decode()
            case _:
                return self.source


class _Tag(Struct):
    begin: str
    end: str
    schema: dict[str, Any]  # Any: JSON, here and below


class _StructuralTag(Struct):
    """vLLM's, which is xgrammar's first form of it."""

    structures: list[_Tag]
    triggers: list[str]


@lru_cache(maxsize=64)
def fault_of(grammar: Grammar) -> str | None:
    """Why no output can be held to this grammar, in one line; None when it can. A millisecond for most, 0.8 s for a schema of
    5000 properties: not for an event loop."""
    from llguidance import LLMatcher

    max_chars = MAX_EBNF_CHARS if grammar.kind == "ebnf" else MAX_SOURCE_CHARS
    if len(grammar.source) > max_chars:
        return f"it has more than {max_chars} characters"
    try:
        source = llguidance_source(grammar)
    except ValueError as error:
        return _one_line(str(error))
    except RecursionError:
        return "it is nested too deeply"
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(source)
    return _one_line(messages[0]) if is_wrong else None


def llguidance_source(grammar: Grammar) -> str:
    """Raises ValueError where the form alone is wrong; what it says is looked at by `fault_of`."""
    from llguidance import LLMatcher, grammar_from  # 10 MB that the broker has no use for

    whitespace: Any = {"whitespace_flexible": False} if grammar.is_compact else {"whitespace_pattern": _WHITESPACE}
    match grammar.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=whitespace)
        case "json_schema":
            options: Any = {**whitespace, "lenient": False}
            return LLMatcher.grammar_from_json_schema(grammar.known_source, overrides=options)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            return _choice_source(grammar.source)
        case "ebnf":
            return grammar_from("ebnf", grammar.source)
        case "structural_tag":
            return _tags_source(grammar.known_source)


def _choice_source(source: str) -> str:
    """One lexeme, whose automaton takes any number of texts; as alternatives of a rule llguidance follows at most 2000."""
    texts = [json.dumps(text, ensure_ascii=False) for text in msgspec.json.decode(source, type=list[str])]
    return "start: CHOICE\nCHOICE: " + " | ".join(texts)


def _known_schema(schema: str) -> str:
    """Of a oneOf llguidance sees by itself whether no two branches fit the same; else it is told what the others refuse."""
    from llguidance import LLMatcher

    known = exact_source(schema)
    if '"oneOf"' not in schema:
        return known
    source = LLMatcher.grammar_from_json_schema(known, overrides={"lenient": False})
    if _UNKNOWN_ONE_OF in (LLMatcher.validate_grammar(source) or ""):
        return exact_source(schema, one_of_is_known=False)
    return known


def _structural_tag(source: str) -> _StructuralTag:
    try:
        return msgspec.json.decode(source, type=_StructuralTag)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _tags_source(source: str) -> str:
    from llguidance import StructTag

    tag, tags = _structural_tag(source), list[StructTag]()
    for structure in tag.structures:
        trigger = next((text for text in tag.triggers if text and structure.begin.startswith(text)), None)
        if trigger is None:
            raise ValueError(f"no trigger begins {structure.begin!r}")
        tags.append(StructTag(trigger=trigger, begin=structure.begin, grammar=structure.schema, end=structure.end))
    if not tags:
        raise ValueError("structures must not be empty")
    return StructTag.to_grammar(tags, assume_special=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
