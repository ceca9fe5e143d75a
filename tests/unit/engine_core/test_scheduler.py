"""Scheduler: who runs when, and what ends how; see tests/property for the model."""

from typing import Any

import numpy as np
import pytest

from engine_core.batch_state import BatchState
from engine_core.plan import RowFailure, StepPlan, StepResult
from engine_core.scheduler import Scheduler
from engine_core.sequence import Sequence
from engine_core.step_output import SampledTokens
from ipc.block_hash import HASH_BYTES, chain
from ipc.messages import SamplingParams, make_stream_id
from ipc.record import NO_STOP_TOKEN, Failure, FailureCode, Finish, FinishCode

BLOCK_SIZE = 4
EOS = 2
SECOND_NS = 1_000_000_000


def new_scheduler(*, num_blocks: int = 100, max_num_seqs: int = 8, max_batched_tokens: int = 64) -> Scheduler:
    state = BatchState(max_num_seqs=max_num_seqs, max_model_len=128, block_size=BLOCK_SIZE, eos_token_ids=(EOS,))
    return Scheduler(state, num_blocks, max_batched_tokens)


def new_sequence(number: int, prompt: list[int] | int = 3, max_tokens: int = 10, **fields: Any) -> Sequence:
    """`prompt`: ids, or how many distinct ones. Any: fields of Sequence."""
    ids = list(range(1000 * number, 1000 * number + prompt)) if isinstance(prompt, int) else prompt
    token_ids = np.array(ids, np.int32)
    links = chain(token_ids.tobytes(), BLOCK_SIZE)
    fields = {"sampling": SamplingParams(max_tokens=max_tokens), "arrival_ns": SECOND_NS, **fields}
    return Sequence(
        stream_id=make_stream_id(fields.pop("slot", 0), fields.pop("generation", 1), number),
        request_id="r",
        token_ids=token_ids,
        num_prompt_tokens=len(ids),
        max_total_len=min(len(ids) + max_tokens, 128),
        arrival=number,
        block_links=[links[at : at + HASH_BYTES] for at in range(0, len(links), HASH_BYTES)],
        is_cacheable=bool(links),
        **fields,
    )


def plan_of(scheduler: Scheduler, now_ns: int = 2 * SECOND_NS) -> StepPlan:
    plan = scheduler.schedule(now_ns)
    assert plan is not None
    return plan


def step(scheduler: Scheduler, token_id: int = 50, now_ns: int = 2 * SECOND_NS) -> SampledTokens:
    """One round in which everybody draws the same token."""
    plan = plan_of(scheduler, now_ns)
    result = StepResult(np.full(len(plan.sampled_rows), token_id, np.int32))
    scheduler.advance(plan)
    tokens = scheduler.commit(plan, result, now_ns)
    scheduler.check_integrity()
    return tokens


def planned(scheduler: Scheduler, plan: StepPlan) -> list[tuple[int, int]]:
    """(stream number, new tokens) in the plan's order."""
    numbers = scheduler.state.number[plan.rows].tolist()
    return list(zip(numbers, plan.num_new_tokens.tolist(), strict=True))


def test_decodes_come_first_and_prefill_chunks_fill_the_budget() -> None:
    scheduler = new_scheduler(max_batched_tokens=10)
    scheduler.add(new_sequence(1, 3))
    step(scheduler)
    scheduler.add(new_sequence(2, 14))

    first = plan_of(scheduler)
    scheduler.advance(first)
    scheduler.commit(first, StepResult(np.array([50], np.int32)))
    second = plan_of(scheduler)

    assert planned(scheduler, first) == [(1, 1), (2, 9)]
    assert first.samples.tolist() == [True, False]
    assert planned(scheduler, second) == [(1, 1), (2, 5)]
    assert second.samples.tolist() == [True, True]
    assert second.context_lens.tolist() == [4, 9]


def test_lower_priority_value_runs_first_even_before_a_prefill_under_way() -> None:
    scheduler = new_scheduler(max_batched_tokens=10)
    scheduler.add(new_sequence(1, 30))
    step(scheduler)
    scheduler.add(new_sequence(2, 4, priority=5))
    scheduler.add(new_sequence(3, 4, priority=-5))

    assert planned(scheduler, plan_of(scheduler)) == [(3, 4), (1, 6)]


def test_a_big_prompt_that_does_not_fit_is_not_overtaken() -> None:
    scheduler = new_scheduler(num_blocks=10)
    scheduler.add(new_sequence(1, 20))
    step(scheduler)
    scheduler.add(new_sequence(2, 30))
    scheduler.add(new_sequence(3, 2))

    assert planned(scheduler, plan_of(scheduler)) == [(1, 1)]
    assert scheduler.num_waiting == 2


def test_a_deadline_that_passes_before_the_start_fails_without_prefill() -> None:
    scheduler = new_scheduler(max_num_seqs=1)
    scheduler.add(new_sequence(1))
    step(scheduler)
    scheduler.add(new_sequence(2, deadline_s=5.0))

    step(scheduler, now_ns=6 * SECOND_NS)

    (ending,) = scheduler.take_endings()
    assert isinstance(ending.record, Failure)
    assert (ending.record.stream, ending.record.code) == (2, FailureCode.DEADLINE)
    assert scheduler.take_progress() == ([make_stream_id(0, 1, 1)], [make_stream_id(0, 1, 2)])


def test_a_deadline_does_not_touch_what_has_started() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, deadline_s=5.0))
    step(scheduler, now_ns=4 * SECOND_NS)

    step(scheduler, now_ns=6 * SECOND_NS)

    assert scheduler.take_endings() == [] and scheduler.num_running == 1


def test_a_prompt_without_room_for_output_is_too_long() -> None:
    scheduler = new_scheduler()

    scheduler.add(new_sequence(1, 128))

    (ending,) = scheduler.take_endings()
    assert isinstance(ending.record, Failure)
    assert ending.record.code == FailureCode.TOO_LONG
    assert "128 tokens" in ending.record.message
    assert not scheduler.has_work


def test_the_whole_prompt_is_never_served_from_the_cache() -> None:
    scheduler = new_scheduler()
    prompt = list(range(12))
    scheduler.add(new_sequence(1, prompt, max_tokens=1))
    step(scheduler)
    scheduler.add(new_sequence(2, prompt))

    plan = plan_of(scheduler)

    assert plan.context_lens.tolist() == [8] and plan.num_new_tokens.tolist() == [4]
    assert (scheduler.counts.prefix_queries, scheduler.counts.prefix_hits) == (24, 8)


def test_the_next_turn_of_a_conversation_finds_generated_blocks() -> None:
    scheduler = new_scheduler()
    prompt = list(range(6))
    scheduler.add(new_sequence(1, prompt, max_tokens=12))
    output: list[int] = []
    while scheduler.has_work:
        output += step(scheduler, token_id=100 + len(output)).token_ids.tolist()
    assert len(output) == 12

    scheduler.add(new_sequence(2, prompt + output + [7, 8, 9]))

    # 17 tokens of the first turn have K/V: the last one drawn was never computed.
    assert plan_of(scheduler).context_lens.tolist() == [16]


def test_a_resumed_sequence_links_the_blocks_it_generated_before() -> None:
    scheduler = new_scheduler()
    resumed = new_sequence(1, list(range(16)))
    resumed.num_prompt_tokens = 6  # the rest was generated, and all that was cached of it is evicted
    del resumed.block_links[2:]
    scheduler.add(resumed)

    step(scheduler)

    assert resumed.block_links == new_sequence(2, list(range(16))).block_links
    scheduler.add(new_sequence(3, list(range(20))))
    assert plan_of(scheduler).context_lens.tolist() == [16, 16]


def test_an_uncacheable_sequence_neither_finds_nor_leaves_blocks() -> None:
    scheduler = new_scheduler()
    prompt = list(range(12))
    for number in (1, 2):
        sequence = new_sequence(number, prompt, max_tokens=1)
        sequence.is_cacheable = False
        scheduler.add(sequence)
        assert plan_of(scheduler).context_lens.tolist() == [0]
        scheduler.abort(sequence.stream_id)

    assert len(scheduler.blocks.cache) == 0


def test_idle_cached_blocks_are_not_counted_twice_at_admission() -> None:
    scheduler = new_scheduler(num_blocks=6)
    scheduler.add(new_sequence(1, list(range(13)), max_tokens=1))
    step(scheduler)
    assert scheduler.blocks.cache.num_idle == 3
    scheduler.add(new_sequence(2, list(range(13)) + [99] * 10))
    scheduler.add(new_sequence(3, 4))

    plan = plan_of(scheduler)

    assert planned(scheduler, plan) == [(2, 11)], "all six blocks belong to the first of them"
    scheduler.check_integrity()


def test_admission_leaves_the_reserve_when_its_prefix_is_idle() -> None:
    scheduler = new_scheduler(num_blocks=6)
    scheduler.add(new_sequence(1, list(range(13)), max_tokens=1))
    step(scheduler)
    scheduler.add(new_sequence(2, 3))
    step(scheduler)
    assert (scheduler.blocks.num_available, scheduler.blocks.cache.num_idle) == (5, 3)

    scheduler.add(new_sequence(3, list(range(13)) + [99] * 5))

    assert planned(scheduler, plan_of(scheduler)) == [(2, 1)], "three idle and two new blocks would be all there are"


def test_preemption_takes_the_last_rank_and_resumes_with_all_its_tokens() -> None:
    scheduler = new_scheduler(num_blocks=5)
    scheduler.add(new_sequence(1, 7, max_tokens=9))
    scheduler.add(new_sequence(2, 6, max_tokens=5))
    plan = plan_of(scheduler)
    assert planned(scheduler, plan) == [(1, 7), (2, 6)]
    scheduler.advance(plan)
    scheduler.commit(plan, StepResult(np.array([50, 51], np.int32)))
    step(scheduler)  # one takes the fifth block, two still has room
    step(scheduler)

    plan = plan_of(scheduler)

    assert planned(scheduler, plan) == [(1, 1)]
    assert scheduler.counts.num_preemptions == 1 and scheduler.num_waiting == 1
    scheduler.abort(make_stream_id(0, 1, 1))
    plan = plan_of(scheduler)
    row = int(plan.rows[0])
    assert scheduler.state.num_prompt[row] == 6
    assert scheduler.state.output_ids(row).tolist() == [51, 50, 50]
    assert plan.context_lens.tolist() == [8], "the rest comes from its own cached blocks"
    assert len(scheduler.take_progress()[0]) == 2, "a resumed sequence does not start again"


def test_a_stop_id_ends_without_being_sent_and_is_counted() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1))
    assert step(scheduler, 50, now_ns=3 * SECOND_NS).token_ids.tolist() == [50]

    tokens = step(scheduler, EOS, now_ns=5 * SECOND_NS)

    (ending,) = scheduler.take_endings()
    assert len(tokens.token_ids) == 0
    assert ending.record == Finish(
        stream=1,
        code=FinishCode.STOP,
        num_prompt_tokens=3,
        num_cached_tokens=0,
        num_output_tokens=2,
        stop_token_id=EOS,
        num_preemptions=0,
        queue_us=2_000_000,
        prefill_us=0,
        decode_us=2_000_000,
    )


def test_the_last_token_of_a_full_sequence_is_sent() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, max_tokens=1))

    tokens = step(scheduler, 50)

    (ending,) = scheduler.take_endings()
    assert tokens.token_ids.tolist() == [50]
    assert isinstance(ending.record, Finish)
    assert (ending.record.code, ending.record.stop_token_id) == (FinishCode.LENGTH, NO_STOP_TOKEN)


@pytest.mark.parametrize(
    ("sampling", "has_stopped"),
    [
        (SamplingParams(max_tokens=9), True),
        (SamplingParams(max_tokens=9, ignore_eos=True), False),
        (SamplingParams(max_tokens=9, ignore_eos=True, stop_token_ids=(7, EOS)), True),
        (SamplingParams(max_tokens=9, min_tokens=2), False),
    ],
)
def test_what_counts_as_a_stop_id(sampling: SamplingParams, has_stopped: bool) -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, sampling=sampling))

    step(scheduler, EOS)

    assert bool(scheduler.take_endings()) == has_stopped


def test_a_non_streaming_request_is_delivered_once_without_its_stop_id() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, is_streaming=False))

    sent = [len(step(scheduler, token_id).token_ids) for token_id in (50, 51, EOS)]

    (ending,) = scheduler.take_endings()
    assert sent == [0, 0, 0]
    assert ending.output_ids is not None and ending.output_ids.tolist() == [50, 51]


@pytest.mark.parametrize(("is_clients", "code"), [(False, FailureCode.INTERNAL), (True, FailureCode.GRAMMAR)])
def test_a_failed_row_ends_alone_and_leaves_nothing_in_the_cache(is_clients: bool, code: FailureCode) -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, 8))
    scheduler.add(new_sequence(2, 8))
    plan = plan_of(scheduler)

    scheduler.advance(plan)
    tokens = scheduler.commit(
        plan, StepResult(np.array([50, 51], np.int32), {int(plan.rows[0]): RowFailure("nan", is_clients)})
    )

    (ending,) = scheduler.take_endings()
    assert ending.record == Failure(1, code, "nan")
    assert (tokens.numbers.tolist(), tokens.token_ids.tolist()) == ([2], [51])
    assert len(scheduler.blocks.cache) == 2
    scheduler.check_integrity()


def test_a_failed_pass_fails_its_sequences_and_nobody_else() -> None:
    scheduler = new_scheduler(max_num_seqs=1)
    scheduler.add(new_sequence(1))
    scheduler.add(new_sequence(2))

    scheduler.fail_plan(plan_of(scheduler), "broken")

    (ending,) = scheduler.take_endings()
    assert ending.record == Failure(1, FailureCode.INTERNAL, "broken")
    assert planned(scheduler, plan_of(scheduler)) == [(2, 3)]


def test_an_abort_frees_everything_without_a_record() -> None:
    scheduler = new_scheduler()
    for number in (1, 2):
        scheduler.add(new_sequence(number))
        step(scheduler)

    scheduler.abort(make_stream_id(0, 1, 1))
    scheduler.abort(make_stream_id(0, 1, 1))

    assert scheduler.take_endings() == []
    assert scheduler.take_progress()[1] == [make_stream_id(0, 1, 1)]
    assert scheduler.num_running == 1
    scheduler.check_integrity()


@pytest.mark.parametrize(("num_steps", "num_output", "times_us"), [(0, 0, (8e6, 0, 0)), (2, 2, (1e6, 0, 7e6))])
def test_a_stream_stopped_by_its_worker_ends_with_its_counts(
    num_steps: int, num_output: int, times_us: tuple[float, float, float]
) -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1))
    for _ in range(num_steps):
        step(scheduler)

    scheduler.stop(make_stream_id(0, 1, 1), now_ns=9 * SECOND_NS)
    scheduler.stop(make_stream_id(0, 1, 1), now_ns=9 * SECOND_NS)

    (ending,) = scheduler.take_endings()
    assert isinstance(ending.record, Finish) and ending.output_ids is None
    assert (ending.record.code, ending.record.num_output_tokens) == (FinishCode.ABORT, num_output)
    assert (ending.record.queue_us, ending.record.prefill_us, ending.record.decode_us) == times_us
    assert not scheduler.has_work
    scheduler.check_integrity()


def test_a_replaced_worker_loses_its_older_streams_only() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, slot=1, generation=1))
    scheduler.add(new_sequence(2, slot=1, generation=2))
    scheduler.add(new_sequence(3, slot=0, generation=1))

    scheduler.abort_slot(1, generation=2)

    assert scheduler.stream_ids == [make_stream_id(1, 2, 2), make_stream_id(0, 1, 3)]


def test_aborted_waiting_sequences_do_not_pile_up() -> None:
    scheduler = new_scheduler(max_num_seqs=1)
    scheduler.add(new_sequence(1))
    step(scheduler)

    for number in range(2, 1000):
        scheduler.add(new_sequence(number))
        scheduler.abort(make_stream_id(0, 1, number))

    assert len(scheduler._waiting) < 100


def test_prompts_that_arrive_beside_decodes_are_in_the_next_pass() -> None:
    scheduler = new_scheduler()
    scheduler.add(new_sequence(1, 3, max_tokens=60))
    scheduler.add(new_sequence(2, 3, max_tokens=60))
    step(scheduler)

    chunks = []
    for number, length in ((3, 4), (4, 5), (5, 6)):
        scheduler.add(new_sequence(number, length, max_tokens=60))
        plan = plan_of(scheduler)
        chunks += planned(scheduler, plan)[plan.num_decodes :]
        scheduler.advance(plan)
        scheduler.commit(plan, StepResult(np.full(len(plan.sampled_rows), 50, np.int32)))

    assert chunks == [(3, 4), (4, 5), (5, 6)]
