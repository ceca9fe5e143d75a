"""Intake: messages become sequences, faults become failures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_core.batch_state import BatchState
from engine_core.grammar import GrammarCompiler
from engine_core.intake import Intake
from engine_core.plan import PromptScores, StepResult, TokenScores
from engine_core.scheduler import Scheduler
from ipc.block_hash import chain
from ipc.messages import (
    Abort,
    AbortWorker,
    Generate,
    Pooling,
    Resume,
    SamplingParams,
    Thinking,
    make_stream_id,
)
from ipc.record import Failure, FailureCode, Finish, FinishCode, pack_record, unpack_record
from ipc.sockets import Inbound

BLOCK_SIZE = 4
STREAM = make_stream_id(0, 1, 7)


class Rig:
    """An intake for one worker slot of generation 1."""

    def __init__(self, *, num_blocks: int = 20, enable_prefix_caching: bool = True) -> None:
        self.scheduler = Scheduler(BatchState(max_num_seqs=4, max_model_len=40, block_size=BLOCK_SIZE), num_blocks, 64)
        self.intake = Intake(
            self.scheduler,
            vocab_size=100,
            enable_prefix_caching=enable_prefix_caching,
            reader_generation={0: 1}.get,
            grammars=GrammarCompiler(Path("none"), 100, (2,)),
        )

    def generate(self, prompt: bytes, *, stream_id: int = STREAM, **fields: Any) -> None:  # Any: fields of Generate
        fields = {"sampling": SamplingParams(max_tokens=5), **fields}
        self.intake.take([Inbound(Generate(stream_id=stream_id, request_id="r", **fields), prompt)])

    @property
    def failures(self) -> list[Failure]:
        return [e.record for e in self.scheduler.take_endings() if isinstance(e.record, Failure)]


def thinking(*, end_ids: tuple[int, ...]) -> Thinking:
    return Thinking(max_tokens=1, end_ids=end_ids, start_ids=(1,), waits_for_start=False)


def ids(*tokens: int) -> bytes:
    return np.array(tokens, np.uint32).tobytes()


def test_a_prompt_arrives_as_it_was_sent() -> None:
    rig = Rig()

    rig.generate(ids(5, 6, 7), priority=2)
    plan = rig.scheduler.schedule()

    assert plan is not None
    row = int(plan.rows[0])
    sequence = rig.scheduler.state.sequences[row]
    assert sequence is not None and sequence.priority == 2
    assert rig.scheduler.state.token_ids[row, :3].tolist() == [5, 6, 7]
    assert rig.scheduler.state.max_total_len[row] == 8


@pytest.mark.parametrize(("num_blocks", "limit"), [(20, 40), (5, 21)])
def test_output_is_bounded_by_the_context_and_by_the_pool(num_blocks: int, limit: int) -> None:
    rig = Rig(num_blocks=num_blocks)

    rig.generate(ids(1), sampling=SamplingParams(max_tokens=1000))
    rig.scheduler.schedule()

    assert rig.scheduler.state.max_total_len.max() == limit


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        (b"", {}, "0 bytes"),
        (ids(1) + b"\0", {}, "5 bytes"),
        (ids(1, 100), {}, "token id 100 is outside the vocabulary of 100"),
        (ids(1, 2**32 - 1), {}, "token id 4294967295"),
        (ids(1), {"sampling": SamplingParams(max_tokens=0)}, "max_tokens is 0"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1, logit_bias=((100, 1.0),))}, "logit_bias token id 100"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1, allowed_token_ids=(3, 100))}, "allowed token id"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1, thinking=thinking(end_ids=()))}, "markers"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1, thinking=thinking(end_ids=(100,)))}, "markers"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1, num_logprobs=0), "is_streaming": False}, "logprobs"),
        (ids(1), {"sampling": SamplingParams(max_tokens=2), "pooling": 1}, "one pass"),
        (ids(1), {"sampling": SamplingParams(max_tokens=1), "pooling": 9}, "pooling 9"),
        (ids(1, 2, 3), {"block_hashes": bytes(16)}, "1 block hashes for 3 tokens in blocks of 4"),
    ],
)
def test_what_would_break_a_step_fails_alone(prompt: bytes, fields: dict[str, Any], words: str) -> None:
    rig = Rig()

    rig.generate(prompt, **fields)

    (failure,) = rig.failures
    assert (failure.stream, failure.code) == (7, FailureCode.INTERNAL)
    assert words in failure.message
    assert rig.scheduler.take_progress() == ([], [STREAM])
    assert not rig.scheduler.has_work


@pytest.mark.parametrize(("pooling", "is_cacheable"), [(Pooling.LAST, True), (Pooling.MEAN, False)])
def test_an_embedding_is_cached_unless_it_needs_every_token(pooling: Pooling, is_cacheable: bool) -> None:
    rig = Rig()

    rig.generate(ids(1, 2, 3, 4), sampling=SamplingParams(max_tokens=1), block_hashes=b"\x01" * 16, pooling=pooling)
    rig.scheduler.schedule()

    [sequence] = [sequence for sequence in rig.scheduler.state.sequences if sequence is not None]
    assert (sequence.pooling, sequence.is_cacheable) == (pooling, is_cacheable)


def test_a_prompt_that_is_scored_is_computed_whole_and_its_scores_leave_in_order() -> None:
    rig = Rig()
    rig.generate(
        ids(5, 6, 7, 8), sampling=SamplingParams(max_tokens=5, num_prompt_logprobs=0), block_hashes=b"\x01" * 16
    )
    plan = rig.scheduler.schedule()
    assert plan is not None
    row = int(plan.rows[0])
    [sequence] = [sequence for sequence in rig.scheduler.state.sequences if sequence is not None]
    assert not sequence.is_cacheable and rig.scheduler.state.num_scored_prompts == 1

    rig.scheduler.advance(plan)
    scores = [TokenScores(-float(place), place, [], []) for place in (1, 2, 3)]
    result = StepResult(np.array([9], np.int32), prompt_scores={row: PromptScores(1, scores)})
    tokens = rig.scheduler.commit(plan, result)

    assert [(entry.prompt_place, entry.token, entry.rank) for _, entry in tokens.scored] == [
        (1, 6, 1),
        (2, 7, 2),
        (3, 8, 3),
    ]
    assert tokens.token_ids.tolist() == [9]
    record = unpack_record(pack_record(scored=[entry for _, entry in tokens.scored]))
    assert record.scored == [entry for _, entry in tokens.scored], "and as they left so they arrive"
    rig.scheduler.abort(STREAM)
    assert rig.scheduler.state.num_scored_prompts == 0


def test_a_prompt_beyond_the_pool_is_too_long() -> None:
    rig = Rig(num_blocks=2)

    rig.generate(ids(*range(9)))

    assert [failure.code for failure in rig.failures] == [FailureCode.TOO_LONG]


@pytest.mark.parametrize(("is_enabled", "num_cached"), [(True, 4), (False, 0)])
def test_hashes_are_used_when_caching_is_on(is_enabled: bool, num_cached: int) -> None:
    rig = Rig(enable_prefix_caching=is_enabled)
    prompt = ids(1, 2, 3, 4, 5)
    rig.generate(prompt, block_hashes=chain(prompt, BLOCK_SIZE))
    first = rig.scheduler.schedule()
    assert first is not None
    rig.scheduler.advance(first)
    rig.scheduler.commit(first, StepResult(np.array([50], np.int32)))

    rig.generate(prompt, stream_id=make_stream_id(0, 1, 8), block_hashes=chain(prompt, BLOCK_SIZE))
    second = rig.scheduler.schedule()

    assert second is not None and second.context_lens[-1] == num_cached


def test_a_stream_of_a_replaced_worker_is_dropped_and_reported_as_ended() -> None:
    rig = Rig()

    rig.generate(ids(1), stream_id=make_stream_id(0, 9, 1))

    assert not rig.scheduler.has_work and rig.failures == []
    assert rig.scheduler.take_progress() == ([], [make_stream_id(0, 9, 1)])


def test_an_unknown_slot_and_a_stream_in_use_change_nothing() -> None:
    rig = Rig()
    rig.generate(ids(1))

    rig.generate(ids(2))
    rig.generate(ids(1), stream_id=make_stream_id(5, 1, 1))

    assert rig.scheduler.stream_ids == [STREAM]
    assert rig.scheduler.take_progress() == ([], [])


def test_aborts_end_one_stream_or_those_of_a_worker() -> None:
    rig = Rig()
    streams = [make_stream_id(0, 1, number) for number in range(3)]
    for stream_id in streams:
        rig.generate(ids(1), stream_id=stream_id)

    rig.intake.take([Inbound(Abort(stream_id=streams[1]), b"")])
    assert rig.scheduler.stream_ids == [streams[0], streams[2]]

    rig.intake.take([Inbound(AbortWorker(slot=0, generation=2), b"")])
    assert rig.scheduler.stream_ids == []


def resume(rig: Rig, all_ids: bytes, num_output_tokens: int, **fields: Any) -> None:  # Any: fields of Generate
    fields = {"sampling": SamplingParams(max_tokens=5), **fields}
    request = Generate(stream_id=STREAM - 1, request_id="r", **fields)
    message = Resume(stream_id=STREAM, request=request, num_output_tokens=num_output_tokens)
    rig.intake.take([Inbound(message, all_ids)])


def test_a_resumed_sequence_draws_at_the_positions_and_with_the_seed_it_would_have_had() -> None:
    plain, resumed = Rig(), Rig()
    plain.generate(ids(5, 6, 7), stream_id=STREAM - 1)
    plain.scheduler.schedule()

    resume(resumed, ids(5, 6, 7, 10, 11), 2, deadline_s=1.0)
    plan = resumed.scheduler.schedule()

    assert plan is not None and plan.num_tokens == 5
    row, state = int(plan.rows[0]), resumed.scheduler.state
    assert state.num_prompt[row] == 3 and state.token_ids[row, :5].tolist() == [5, 6, 7, 10, 11]
    assert state.max_total_len[row] == 8
    assert state.seed[row] == plain.scheduler.state.seed[0]
    tokens = resumed.scheduler.commit(plan, StepResult(np.array([12], np.int32)))
    assert (tokens.numbers.tolist(), tokens.token_ids.tolist()) == ([7], [12])


def test_a_resumed_whole_answer_holds_only_what_was_not_delivered() -> None:
    rig = Rig()

    resume(rig, ids(5, 6, 7, 10, 11, 12, 13), 4, is_streaming=False)
    plan = rig.scheduler.schedule()
    assert plan is not None
    rig.scheduler.commit(plan, StepResult(np.array([14], np.int32)))

    [ending] = rig.scheduler.take_endings()
    assert ending.output_ids is not None and ending.output_ids.tolist() == [14]
    assert isinstance(ending.record, Finish) and ending.record.num_output_tokens == 5


def test_a_resumed_sequence_that_lacked_only_its_finish_gets_it_without_a_step() -> None:
    rig = Rig()

    resume(rig, ids(5, 6, 7, 10, 11, 12, 13, 14), 5)

    assert rig.scheduler.schedule() is None
    [ending] = rig.scheduler.take_endings()
    assert isinstance(ending.record, Finish)
    assert (ending.record.code, ending.record.num_output_tokens) == (FinishCode.LENGTH, 5)
    assert rig.scheduler.take_progress() == ([], [STREAM])


def test_cached_blocks_of_a_resumed_output_are_not_reported_as_cached_prompt() -> None:
    rig = Rig()
    prompt = ids(1, 2, 3, 4)
    hashes = chain(prompt, BLOCK_SIZE)
    rig.generate(ids(1, 2, 3, 4, 5, 6, 7, 8, 9), stream_id=STREAM - 2, sampling=SamplingParams(max_tokens=1),
                 block_hashes=chain(ids(1, 2, 3, 4, 5, 6, 7, 8), BLOCK_SIZE))  # fmt: skip
    plan = rig.scheduler.schedule()
    assert plan is not None
    rig.scheduler.commit(plan, StepResult(np.array([10], np.int32)))
    rig.scheduler.take_endings()

    resume(rig, prompt + ids(5, 6, 7, 8, 9), 5, sampling=SamplingParams(max_tokens=6), block_hashes=hashes)
    plan = rig.scheduler.schedule()
    assert plan is not None
    rig.scheduler.commit(plan, StepResult(np.array([10], np.int32)))

    [ending] = rig.scheduler.take_endings()
    assert isinstance(ending.record, Finish) and ending.record.num_cached_tokens <= 4


def test_a_resumption_without_prompt_is_refused() -> None:
    rig = Rig()

    resume(rig, ids(10, 11), 2)

    assert not rig.scheduler.has_work
