"""Where a grammar holds in an output that may begin with reasoning."""

from pathlib import Path

import numpy as np
import pytest

from engine_core.grammar import GrammarCompiler, Matcher
from engine_core.held_output import allowed_next
from ipc.grammar import Grammar
from ipc.messages import Thinking
from tests.unit.apiserver.worker_rig import make_model_folder

VOCAB = 300
EOS = 2
START, END = (0,), (1, 0)  # special tokens


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder: Path = make_model_folder(tmp_path_factory.mktemp("held") / "model")
    return GrammarCompiler(folder / "tokenizer.json", VOCAB, (EOS,))


@pytest.fixture
def matcher(compiler: GrammarCompiler) -> Matcher:
    """Of the digits of one number."""
    compiled = compiler.compile(Grammar("regex", "[0-9]+"))
    compiled.exception(timeout=30)
    return compiler.matcher_of(compiled)


def allowed(
    matcher: Matcher, output: tuple[int, ...], *, waits: bool | None, start: tuple[int, ...] = START
) -> set[int] | None:
    """None: anything. `waits` None: the model does not reason."""
    thinking = None if waits is None else Thinking(start_ids=start, end_ids=END, waits_for_start=waits)
    bits = allowed_next(matcher, np.array(output, np.int32), thinking)
    return None if bits is None else set(np.flatnonzero(bits).tolist())


def test_without_reasoning_the_grammar_holds_from_the_first_token(matcher: Matcher) -> None:
    first = allowed(matcher, (), waits=None)

    assert first and not first & {*START, *END, EOS}


def test_reasoning_is_free_until_its_end_marker(matcher: Matcher) -> None:
    for output in ((), (7,), (7, 1), (*START, 7, 1)):
        assert allowed(matcher, output, waits=False) is None
    first = allowed(matcher, (*START, 7, *END), waits=False)

    assert first and not first & {*START, *END, EOS}


def test_a_model_that_may_reason_may_begin_with_the_marker_or_the_answer(matcher: Matcher) -> None:
    digits = allowed(matcher, (), waits=None)
    assert digits is not None
    digit = min(digits)

    assert allowed(matcher, (), waits=True) == digits | {START[0]}
    assert allowed(matcher, (), waits=True, start=(0, 1)) == digits
    assert allowed(matcher, START, waits=True) is None
    assert allowed(matcher, (*START, 7, *END), waits=True) == digits
    behind = allowed(matcher, (*START, 7, *END, digit), waits=True)
    assert behind is not None and digits | {EOS} <= behind
