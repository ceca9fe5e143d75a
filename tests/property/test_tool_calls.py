"""However an answer is cut into pieces, the calls in it are the same; a call's arguments are whole JSON; what is no call stays
content, to the last character."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.output_parts import CallArguments, CallStart, Content, Part
from apiserver.tools.call_parser import CallParser, JsonListParser
from apiserver.tools.hermes import HermesParser
from apiserver.tools.llama3_json import Llama3JsonParser
from apiserver.tools.mistral import MistralParser
from apiserver.tools.parameter_types import json_of as json_of_parameter
from apiserver.tools.python_literal import json_of as json_of_literal
from apiserver.tools.pythonic import PythonicParser
from apiserver.tools.qwen3_coder import Qwen3CoderParser
from tests.property.pieces import cut, cuts

Arguments = dict[str, Any]
Calls = list[tuple[str, Arguments]]

NAMES = st.sampled_from(["f", "get_weather", "a.b-c"])
PYTHON_NAMES = st.sampled_from(["f", "get_weather"])
TEXTS = st.text(st.sampled_from("ab 日\"'\\\n{}[](),=<>/:;"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["a", "city", "longer_key"])
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)
PYTHON_CALLS = st.lists(st.tuples(PYTHON_NAMES, ARGUMENTS), min_size=1, max_size=3)
TEXT_CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(KEYS, st.text("ab日\n\"'\\{<", max_size=6), max_size=3)), min_size=1, max_size=3
)


def parts_of(parser: CallParser, pieces: list[str]) -> list[Part]:
    parts: list[Part] = []
    for piece in pieces:
        simple = parser.simple_part_or_none(piece) if piece else None
        parts += parser.feed(piece) if simple is None else [simple]
    return parts + parser.finish()


def written(parts: list[Part]) -> list[tuple[str, str]]:
    """The calls as name and arguments' text; checks that the parts come in order."""
    calls: list[tuple[str, str]] = []
    for part in parts:
        match part:
            case CallStart():
                assert part.index == len(calls) and part.id
                calls.append((part.name, ""))
            case CallArguments():
                assert part.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
            case _:
                pass
    return calls


def content(parts: list[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


def as_objects(calls: list[tuple[str, str]]) -> Calls:
    return [(name, json.loads(arguments)) for name, arguments in calls]


# ── how models write calls ───────────────────────────────────────────────────────────────────────────────────────────


def hermes(calls: Calls) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls)


def hermes_arguments_first(calls: Calls) -> str:
    return "".join(f"<tool_call>{json.dumps({'arguments': a, 'id': 7, 'name': n})}</tool_call>" for n, a in calls)


def llama3(calls: Calls) -> str:
    return "; ".join(json.dumps({"name": n, "parameters": a}, ensure_ascii=False) for n, a in calls)


def llama3_with_tag(calls: Calls) -> str:
    return "<|python_tag|>" + llama3(calls)


def mistral_list(calls: Calls) -> str:
    return f"[TOOL_CALLS] {json.dumps([{'name': n, 'arguments': a} for n, a in calls])}"


def mistral(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{n}{json.dumps(a)}" for n, a in calls)


def mistral_with_args(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{n}[CALL_ID]abcDEF123[ARGS]{json.dumps(a)}" for n, a in calls)


def json_list(calls: Calls) -> str:
    return json.dumps([{"name": n, "parameters": a} for n, a in calls], indent=1)


def pythonic(calls: Calls) -> str:
    def one(name: str, arguments: Arguments) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

    return f"[{', '.join(one(*call) for call in calls)}]"


def qwen3_coder(calls: Calls) -> str:
    def one(name: str, arguments: Arguments) -> str:
        values = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
        return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"

    return "\n".join(one(*call) for call in calls)


FORMS: list[tuple[type[CallParser], Callable[[Calls], str]]] = [
    (HermesParser, hermes),
    (HermesParser, hermes_arguments_first),
    (Llama3JsonParser, llama3),
    (Llama3JsonParser, llama3_with_tag),
    (MistralParser, mistral_list),
    (MistralParser, mistral),
    (MistralParser, mistral_with_args),
    (JsonListParser, json_list),
]


@pytest.mark.parametrize(("parser", "form"), FORMS, ids=lambda value: value.__name__)
@given(calls=CALLS, places=cuts())
def test_json_calls_arrive_as_they_were_written(
    parser: type[CallParser], form: Callable[[Calls], str], calls: Calls, places: list[int]
) -> None:
    parts = parts_of(parser({}), cut(form(calls), places))

    assert as_objects(written(parts)) == calls
    assert content(parts) == ""


@given(calls=PYTHON_CALLS, places=cuts())
def test_pythonic_calls_arrive_as_they_were_written(calls: Calls, places: list[int]) -> None:
    parts = parts_of(PythonicParser({}), cut(pythonic(calls), places))

    assert as_objects(written(parts)) == calls
    assert content(parts) == ""


@given(calls=TEXT_CALLS, places=cuts())
def test_text_parameters_of_qwen_arrive_as_they_were_written(calls: Calls, places: list[int]) -> None:
    parts = parts_of(Qwen3CoderParser({}), cut(qwen3_coder(calls), places))

    assert as_objects(written(parts)) == calls
    assert content(parts) == ""


NOISE = st.lists(
    st.sampled_from(
        [
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=f>", "</function>", "<parameter=a>",
            "</parameter>", '{"name": "f"', ', "arguments": ', '"parameters": ', '{"a": 1}', "{", "}", "[", "]", "f(", "a=1",
            ")", ",", ";", "\n", " ", "x日", '"', "\\", "1", "f", "[ARGS]", "[CALL_ID]", "tru", "<", "[f(", "[{",
        ]
    ),
    max_size=12,
).map("".join)  # fmt: skip
PARSERS = [HermesParser, Llama3JsonParser, MistralParser, JsonListParser, PythonicParser, Qwen3CoderParser]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda value: value.__name__)
@given(answer=NOISE, places=cuts())
def test_any_text_in_any_pieces_gives_the_same_calls_and_the_same_content(
    parser: type[CallParser], answer: str, places: list[int]
) -> None:
    whole, pieces = parts_of(parser({}), [answer]), parts_of(parser({}), cut(answer, places))

    assert written(pieces) == written(whole)
    assert content(pieces) == content(whole)
    assert parts_of(parser({}), list(answer))[-1:] == [] or content(parts_of(parser({}), list(answer))) == content(
        whole
    )


@pytest.mark.parametrize("parser", PARSERS, ids=lambda value: value.__name__)
@given(answer=NOISE, places=cuts())
def test_text_without_a_call_is_content_to_the_last_character(
    parser: type[CallParser], answer: str, places: list[int]
) -> None:
    parts = parts_of(parser({}), cut(answer, places))

    if not written(parts):
        assert content(parts) == answer


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (r'"hi \ud83d\ude00"', "hi \U0001f600"),
        (r'"half \ud83d."', "half \ufffd."),
        (r'["\ud83d\ude00"]', ["\U0001f600"]),
        (r'{"\ud83d": 1}', {"\ufffd": 1}),
        ("[1e999]", "[1e999]"),
    ],
)
def test_values_that_no_json_could_carry_are_made_whole(written: str, kept: Any) -> None:
    """Escapes of half a character, and numbers beyond all bounds: what encodes the answer would refuse them."""
    told = json_of_parameter(written, frozenset({"object", "array", "string"}))

    assert json.loads(told.encode()) == (written if written.startswith('"') else kept)
    if "999" not in written and "{" not in written:
        assert json.loads(json_of_literal(written).encode()) == kept
