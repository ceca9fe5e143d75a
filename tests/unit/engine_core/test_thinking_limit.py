"""Which token ends the reasoning, and when: against a model that writes whatever it likes until it is forced."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine_core.thinking_limit import forced_token_or_none
from ipc.messages import Thinking

START, END = (1, 2), (3, 4, 3)
WORDS = st.lists(st.integers(0, 5), max_size=30)


def budget(max_tokens: int, *, waits_for_start: bool = False) -> Thinking:
    return Thinking(max_tokens=max_tokens, end_ids=END, start_ids=START, waits_for_start=waits_for_start)


def generate(wanted: list[int], limit: Thinking) -> list[int]:
    """What comes out where the model would say `wanted`, and what is forced takes its place."""
    output: list[int] = []
    while wanted:
        forced = forced_token_or_none(np.array(output, np.int32), limit)
        if forced is None:
            forced, wanted = wanted[0], wanted[1:]
        output.append(forced)
    return output


def place(output: list[int], ids: tuple[int, ...]) -> int:
    return next((at for at in range(len(output)) if tuple(output[at : at + len(ids)]) == ids), len(output))


@given(wanted=WORDS, max_tokens=st.integers(0, 8))
def test_reasoning_never_has_more_tokens_than_its_budget(wanted: list[int], max_tokens: int) -> None:
    output = generate(wanted, budget(max_tokens))

    begin = 2 if tuple(output[:2]) == START and max_tokens >= 0 else 0
    thought = output[begin:]
    if len(thought) > max_tokens + len(END):
        assert place(thought, END) <= max_tokens


@given(wanted=WORDS, max_tokens=st.integers(0, 8))
def test_a_model_that_ends_its_reasoning_in_time_is_left_alone(wanted: list[int], max_tokens: int) -> None:
    output = generate([*END, *wanted], budget(max_tokens + len(END)))

    assert output == [*END, *wanted]


@given(wanted=WORDS)
def test_without_a_start_marker_nothing_is_limited_where_one_is_waited_for(wanted: list[int]) -> None:
    without = [token for token in wanted if token != START[1]]

    assert generate(without, budget(0, waits_for_start=True)) == without


def test_the_start_marker_is_not_counted() -> None:
    for waits in (False, True):
        assert generate([*START, 7, 7, 7, 7], budget(2, waits_for_start=waits)) == [*START, 7, 7, *END, 7, 7]
    assert generate([0, *START, 7, 7], budget(1, waits_for_start=True)) == [0, *START, 7, *END, 7]
