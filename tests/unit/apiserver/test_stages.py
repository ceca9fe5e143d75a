"""Stages have one decimal of a millisecond, and are those of the choice that took the engine longest."""

from typing import cast

import pytest

from apiserver.generation import Choice, Stages, stages_of, tenths_of_ms
from ipc.record import Finish, FinishCode


class Ended:
    def __init__(self, queue_us: int, prefill_us: int, decode_us: int) -> None:
        self.engine_finish = Finish(1, FinishCode.LENGTH, -1, 4, 1, 0, 0, queue_us, prefill_us, decode_us)


def stages(*choices: Ended) -> Stages | None:
    return stages_of(cast(list[Choice], list(choices)))


@pytest.mark.parametrize(("us", "ms"), [(0, 0.0), (49, 0.0), (50, 0.1), (12_345, 12.3), (12_350, 12.4), (10**9, 1e6)])
def test_microseconds_become_tenths_of_milliseconds(us: int, ms: float) -> None:
    assert tenths_of_ms(us) == ms


def test_stages_are_those_of_the_longest_choice() -> None:
    assert stages(Ended(100, 200, 300)) == Stages(0.1, 0.2, 0.3)
    assert stages(Ended(100, 200, 300), Ended(0, 0, 9_000)) == Stages(0.0, 0.0, 9.0)
    assert stages() is None
