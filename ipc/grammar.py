"""What an output must match: the form that travels from worker to engine, and the same as llguidance reads it.

llguidance (https://github.com/guidance-ai/llguidance) checks a grammar without a tokenizer, so that the worker can refuse a
wrong one; it compiles in some milliseconds, needs no other package, and refuses a JSON schema with a keyword that it would not
enforce. xgrammar 0.2.8, vLLM's first choice, imports transformers (2.5 s); vLLM keeps a list of the keywords it must not be
given (has_xgrammar_unsupported_json_features).
"""

from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ipc.json_schema import exact, exact_source

Kind = Literal["json_object", "json_schema", "regex", "choice", "ebnf", "structural_tag"]

MAX_SOURCE_CHARS = 256 * 1024
MAX_EBNF_CHARS = 16 * 1024
"""Rewriting EBNF as Lark takes Python time that grows with the square of its length: 0.3 s for this much."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between JSON tokens. Bounded: a small model would otherwise indent until its tokens are used up."""


class Grammar(Struct, frozen=True, array_like=True):
    """`source` by kind: JSON of the schema; the regular expression; a JSON list of texts; EBNF as in GBNF, or Lark; JSON of the
    structural tag. An empty text for json_object."""

    kind: Kind
    source: str = ""


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
    """Why no output can be held to this grammar, in one line; None when it can. A millisecond for most, 0.1 s for 10 000
    choices or the longest schema: not for an event loop."""
    from llguidance import LLMatcher

    max_chars = MAX_EBNF_CHARS if grammar.kind == "ebnf" else MAX_SOURCE_CHARS
    if len(grammar.source) > max_chars:
        return f"it has more than {max_chars} characters"
    try:
        source = llguidance_source(grammar)
    except ValueError as error:
        return _one_line(str(error))
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(source)
    return _one_line(messages[0]) if is_wrong else None


def llguidance_source(grammar: Grammar) -> str:
    """Raises ValueError where the form alone is wrong; what it says is looked at by `fault_of`."""
    from llguidance import LLMatcher, grammar_from  # 10 MB that the broker has no use for

    match grammar.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides={"whitespace_pattern": _WHITESPACE})
        case "json_schema":
            options: Any = {"whitespace_pattern": _WHITESPACE, "lenient": False}
            return LLMatcher.grammar_from_json_schema(exact_source(grammar.source), overrides=options)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.source)
        case "choice":
            return grammar_from("choice", grammar.source)
        case "ebnf":
            return grammar_from("ebnf", grammar.source)
        case "structural_tag":
            return _tags_source(grammar.source)


def _tags_source(source: str) -> str:
    from llguidance import StructTag

    try:
        tag = msgspec.json.decode(source, type=_StructuralTag)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    tags = []
    for structure in tag.structures:
        trigger = next((text for text in tag.triggers if text and structure.begin.startswith(text)), None)
        if trigger is None:
            raise ValueError(f"no trigger begins {structure.begin!r}")
        tags.append(
            StructTag(trigger=trigger, begin=structure.begin, grammar=exact(structure.schema), end=structure.end)
        )  # fmt: skip
    if not tags:
        raise ValueError("structures must not be empty")
    return StructTag.to_grammar(tags, assume_special=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
