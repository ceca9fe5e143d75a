"""Matchers follow their sequences, and what waits for its grammar is in nobody's way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine_core.grammar import MAX_COMPILED_CHARS, GrammarCompiler, GrammarError, Matcher
from ipc.grammar import Grammar, fault_of, llguidance_source

EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


MANY = ["a", "ab", 'quo"te', "back\\slash", "new\nline", "日本", "😀", *(f"choice {number}" for number in range(5000))]
WIDE: dict[str, Any] = {
    "type": "object",
    "properties": {f"p{number}": {"type": "boolean"} for number in range(1000)},
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(model_folder: Path) -> GrammarCompiler:
    return GrammarCompiler(model_folder / "tokenizer.json", 49152, (EOS,))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


def matcher_of(compiler: GrammarCompiler, grammar: Grammar) -> Matcher:
    compiled = compiler.compile(grammar)
    compiled.exception()  # until it is done
    return compiler.matcher_of(compiled)


def walk(matcher: Matcher, seed: int, max_tokens: int = 400) -> list[int]:
    """Random tokens among the allowed ones, until only the end is."""
    source, output = np.random.default_rng(seed), np.zeros(0, np.int32)
    while len(output) < max_tokens:
        allowed = np.flatnonzero(matcher.allowed(output))
        assert len(allowed), "nothing may follow"
        token = source.choice(allowed)
        if token == EOS or matcher.is_complete:
            break
        output = np.append(output, np.int32(token))
    return [int(token) for token in output]


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        (Grammar("choice", '["yes", "no", "maybe so"]'), {"yes", "no", "maybe so"}.__contains__),
        (Grammar("choice", json.dumps(MANY)), set(MANY).__contains__),
        (Grammar("regex", "[0-9]{3}-[0-9]{4}"), lambda text: len(text) == 8 and text[3] == "-"),
        (Grammar("ebnf", 'root ::= "a" tail\ntail ::= "b" | "c" tail'), lambda text: text[0] + text[-1] == "ab"),
        (Grammar("json_schema", json.dumps(SCHEMA)), lambda text: set(json.loads(text)) == {"name", "age"}),
    ],
)
def test_any_walk_over_the_allowed_tokens_fits(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, fits: Any
) -> None:
    for seed in range(20):
        output = walk(matcher_of(compiler, grammar), seed)

        assert fits(tokenizer.decode(output, skip_special_tokens=False))


def test_a_mask_depends_on_the_output_alone_however_it_was_reached(compiler: GrammarCompiler) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    stepwise = matcher_of(compiler, grammar)
    output = np.array(walk(stepwise, 1)[:9], np.int32)
    stepwise = matcher_of(compiler, grammar)
    for end in range(len(output)):
        stepwise.allowed(output[:end])

    assert (matcher_of(compiler, grammar).allowed(output) == stepwise.allowed(output)).all()


def test_behind_a_complete_output_only_the_end_may_follow(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = matcher_of(compiler, Grammar("choice", '["yes"]'))
    output = np.array(tokenizer.encode("yes").ids, np.int32)

    assert np.flatnonzero(matcher.allowed(output)).tolist() == [EOS]
    assert matcher.is_complete
    assert np.flatnonzero(matcher.allowed(np.append(output, np.int32(EOS)))).tolist() == [EOS]


def test_an_output_that_has_left_its_grammar_has_no_way_on(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = matcher_of(compiler, Grammar("choice", '["yes"]'))

    assert not matcher.allowed(np.array(tokenizer.encode("no").ids, np.int32)).any()


def test_an_object_of_a_thousand_optional_properties_may_have_any_of_them(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = matcher_of(compiler, Grammar("json_schema", json.dumps(WIDE)))

    assert matcher.allowed(np.array(tokenizer.encode('{"p7').ids, np.int32)).any()
    assert matcher.allowed(np.array(tokenizer.encode('{"p7": true}').ids, np.int32))[EOS]


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    grammar = Grammar("regex", "once[a-z]+")

    assert compiler.compile(grammar) is compiler.compile(Grammar("regex", "once[a-z]+"))


def test_a_tokenizer_that_cannot_be_read_is_the_grammars_error(tmp_path: Path) -> None:
    compiler = GrammarCompiler(tmp_path / "none", 100, (EOS,))
    compiled = compiler.compile(Grammar("json_object"))
    compiled.exception()

    with pytest.raises(GrammarError, match="did not compile"):
        compiler.matcher_of(compiled)


def test_compiled_grammars_are_forgotten_oldest_first_when_their_sources_grow_too_long(tmp_path: Path) -> None:
    compiler = GrammarCompiler(tmp_path / "none", 100, (EOS,))
    half = " " * (MAX_COMPILED_CHARS // 2)
    first, second = (compiler.compile(Grammar("regex", letter + half[1:])) for letter in "ab")

    assert compiler.compile(Grammar("regex", "a" + half[1:])) is first  # both fit, and "a" is the newer one now
    compiler.compile(Grammar("regex", "c"))

    assert compiler.compile(Grammar("regex", "a" + half[1:])) is first
    assert compiler.compile(Grammar("regex", "b" + half[1:])) is not second


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        (Grammar("json_schema", '{"type": "strin"}'), "strin"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar("json_schema", "{"), "EOF"),
        (Grammar("regex", "(a|b"), "unclosed"),
        (Grammar("ebnf", "root = ="), "::="),
        (Grammar("structural_tag", '{"structures": []}'), "triggers"),
        (Grammar("structural_tag", '{"structures": [], "triggers": []}'), "empty"),
        (
            Grammar("structural_tag", '{"structures": [{"begin": "x", "end": "y", "schema": {}}], "triggers": ["z"]}'),
            "x",
        ),
        (Grammar("regex", "a" * 300_000), "characters"),
    ],
)
def test_what_nothing_can_be_held_to_is_said_in_one_line(grammar: Grammar, word: str) -> None:
    fault = fault_of(grammar)

    assert fault is not None and word in fault and "\n" not in fault


def test_a_structural_tag_holds_what_stands_between_its_marks(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    tag = {
        "structures": [{"begin": "<f=add>", "schema": {"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": False}, "end": "</f>"}],
        "triggers": ["<f="],
    }  # fmt: skip
    grammar = Grammar("structural_tag", json.dumps(tag))
    assert fault_of(grammar) is None

    def fits(text: str) -> bool:
        output = np.array(tokenizer.encode(text).ids, np.int32)
        return bool(matcher_of(compiler, grammar).allowed(output).any())

    assert fits("any words, then <f=add>") and fits('so: <f=add>{"a": 3}</f> and on')
    assert not fits('so: <f=add>{"b": 3') and not fits("so: <f=sub>")


def test_white_space_between_tokens_is_bounded() -> None:
    assert r"{1,32}" in llguidance_source(Grammar("json_object"))
