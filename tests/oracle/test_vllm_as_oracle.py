"""The same requests to vLLM's own server and to a fleet, greedy, with the same float32 weights: `make oracle`.

Statuses, keys, types and nulls, finish reasons, texts, logprobs, usage and the events of streams are vLLM's, but for what
accepted.toml lists with its reason.
"""

import pytest

from tests.oracle.answers import Answer
from tests.oracle.cases.all_cases import CASES
from tests.oracle.comparison import accepted_rows, differences

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(3600)]

ROWS = accepted_rows()

Answers = dict[str, tuple[Answer, Answer]]


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_answer_is_vllms_but_for_accepted_differences(name: str, answers: Answers) -> None:
    found = differences(name, *answers[name])

    left = [str(difference) for difference in found if not any(row.accepts(difference) for row in ROWS)]

    assert not left, "\n".join(left)


def test_every_accepted_difference_is_still_there(answers: Answers) -> None:
    found = [difference for name, pair in answers.items() for difference in differences(name, *pair)]

    stale = [row for row in ROWS if not any(row.accepts(difference) for difference in found)]

    assert not stale, "\n".join(map(str, stale))


def test_names_of_cases_are_their_own() -> None:
    names = [case.name for case in CASES]

    assert len(set(names)) == len(names) >= 150
