"""Sequence: rank and the parts of its stream id."""

import numpy as np
import pytest

from engine_core.sequence import NO_ROW, Sequence, SequenceState
from ipc.messages import SamplingParams, make_stream_id


def sequence(arrival: int, priority: int = 0) -> Sequence:
    return Sequence(
        stream_id=make_stream_id(3, 2, arrival),
        request_id="r",
        sampling=SamplingParams(max_tokens=1),
        token_ids=np.ones(2, np.int32),
        num_prompt_tokens=2,
        max_total_len=3,
        arrival=arrival,
        arrival_ns=0,
        priority=priority,
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (sequence(1), sequence(2)),
        (sequence(2, priority=-1), sequence(1)),
        (sequence(9, priority=1), sequence(1, priority=2)),
    ],
)
def test_lower_priority_runs_first_then_earlier_arrival(first: Sequence, second: Sequence) -> None:
    assert first < second
    assert max(first, second) is second


def test_a_new_sequence_waits_without_a_row_and_knows_its_worker() -> None:
    new = sequence(7)

    assert (new.state, new.row) == (SequenceState.WAITING, NO_ROW)
    assert (new.slot, new.generation, new.number) == (3, 2, 7)
