"""BatchState: what a row holds, and what the runner is told about it."""

from typing import Any

import numpy as np

from engine_core.batch_state import NO_STOP_ID, BatchState
from engine_core.sequence import NO_ROW, Sequence, SequenceState
from ipc.messages import SamplingParams, make_stream_id


def new_state(seed: int = 0) -> BatchState:
    return BatchState(max_num_seqs=3, max_model_len=32, block_size=4, eos_token_ids=(2,), seed=seed)


def new_sequence(number: int = 1, **sampling: Any) -> Sequence:  # Any: fields of SamplingParams
    return Sequence(
        stream_id=make_stream_id(1, 1, number),
        request_id="r",
        sampling=SamplingParams(max_tokens=5, **sampling),
        token_ids=np.array([5, 6, 7], np.int32),
        num_prompt_tokens=3,
        max_total_len=8,
        arrival=number,
        arrival_ns=0,
    )


def test_a_row_carries_tokens_sampling_and_the_way_back() -> None:
    state = new_state()
    sequence = new_sequence(
        9, temperature=0.5, top_p=0.25, top_k=4, min_p=0.125, presence_penalty=1.0, frequency_penalty=-1.0,
        repetition_penalty=1.5, seed=2**63 + 1, min_tokens=2, stop_token_ids=(8,), logit_bias=((3, -1.0),),
    )  # fmt: skip

    row = state.add(sequence)

    assert (sequence.row, sequence.state) == (row, SequenceState.RUNNING)
    assert state.token_ids[row, : state.num_tokens[row]].tolist() == [5, 6, 7]
    assert (state.num_prompt[row], state.num_computed[row], state.num_blocks[row]) == (3, 0, 0)
    assert (state.temperature[row], state.top_p[row], state.top_k[row], state.min_p[row]) == (0.5, 0.25, 4, 0.125)
    assert (state.presence_penalty[row], state.frequency_penalty[row], state.repetition_penalty[row]) == (1, -1, 1.5)
    assert (int(state.seed[row]), state.min_tokens[row], state.logit_bias[row]) == (2**63 + 1, 2, ((3, -1.0),))
    assert (state.slot[row], state.number[row], state.max_total_len[row]) == (1, 9, 8)
    assert state.stop_ids[row].tolist() == [2, 8]


def test_stop_ids_widen_for_all_and_leave_nothing_of_the_occupant_before() -> None:
    state = new_state()
    first = state.add(new_sequence(1, stop_token_ids=(8, 9, 10)))
    second = state.add(new_sequence(2))
    state.remove(first)

    reused = state.add(new_sequence(3, ignore_eos=True))

    assert reused == first
    assert state.stop_ids[second].tolist() == [2, NO_STOP_ID, NO_STOP_ID, NO_STOP_ID]
    assert state.stop_ids[reused].tolist() == [NO_STOP_ID] * 4


def test_unseeded_requests_differ_and_repeat_with_the_engine_seed() -> None:
    seeds = []
    for engine_seed in (0, 0, 1):
        state = new_state(engine_seed)
        seeds.append([int(state.seed[state.add(new_sequence(number))]) for number in (1, 2)])

    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4


def test_a_negative_seed_is_taken_modulo_two_to_the_64() -> None:
    state = new_state()

    row = state.add(new_sequence(1, seed=-1))

    assert int(state.seed[row]) == 2**64 - 1


def test_changed_and_freed_rows_are_reported_once() -> None:
    state = new_state()
    kept, left = state.add(new_sequence(1)), state.add(new_sequence(2))
    state.remove(left)

    assert state.take_changed_rows().tolist() == [kept]
    assert state.take_freed_rows().tolist() == [left]
    assert not len(state.take_changed_rows()) and not len(state.take_freed_rows())


def test_a_removed_sequence_has_no_row_but_its_output_is_still_there() -> None:
    state = new_state()
    row = state.add(new_sequence())
    state.token_ids[row, 3:5] = 8, 9
    state.num_tokens[row] = 5

    removed = state.remove(row)

    assert removed.row == NO_ROW and state.num_running == 0
    assert state.output_ids(row).tolist() == [8, 9]
