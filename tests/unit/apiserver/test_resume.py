"""Streams outlive their engine: parked when it is lost, sent to the next one with what was delivered, never told twice."""

from array import array

import pytest

from apiserver.engine_client import RECORDS_PER_WAKE_UP
from apiserver.journal import MAX_FRUITLESS, Journal
from apiserver.sink import StreamError
from ipc.messages import (
    Abort,
    EngineLost,
    EngineReady,
    Kind,
    Rejected,
    SamplingParams,
    StreamId,
    number_of,
)
from ipc.record import Finish, FinishCode
from ipc.ring import RING_HEADER_BYTES
from tests.unit.apiserver.in_process import RecordingSink, Worker, finish

PROMPT = array("I", [5, 6, 7]).tobytes()


def make_worker(timeout_s: float = 60.0) -> Worker:
    return Worker(journal=Journal(timeout_s=timeout_s, max_log_bytes=1 << 20))


def submit(worker: Worker, sink: RecordingSink, *, is_streaming: bool = True, max_tokens: int = 8) -> int:
    """The stream's number."""
    sink.stream_id = worker.client.submit(
        PROMPT, SamplingParams(max_tokens=max_tokens), sink, request_id="r", is_streaming=is_streaming, deadline_s=9.5
    )
    return number_of(sink.stream_id)


def hear(worker: Worker, *messages: Rejected | EngineLost | EngineReady) -> None:
    worker.broker.inbox += messages
    worker.client.exchange()


def lose(worker: Worker, *sinks: RecordingSink) -> None:
    hear(worker, EngineLost(engine=0, stream_ids=tuple(sink.stream_id or 0 for sink in sinks)))


def last_ids(worker: Worker) -> list[int]:
    return array("I", worker.broker.prompts[-1] or b"").tolist()


def test_a_lost_stream_goes_on_behind_what_was_delivered_under_a_number_of_its_own() -> None:
    worker, sink = make_worker(), RecordingSink()
    number = submit(worker, sink)
    first = sink.stream_id
    worker.step([number], [10])
    worker.step([number], [11])

    lose(worker, sink)
    assert (worker.broker.resumes, sink.ends) == ([], []), "nothing to say and nowhere to go yet"
    hear(worker, EngineReady(engine=0))

    [resume] = worker.broker.resumes
    envelope = worker.broker.envelopes[-1]
    assert resume.stream_id == sink.stream_id != first and resume.request.stream_id == first
    assert (resume.num_output_tokens, last_ids(worker)) == (2, [5, 6, 7, 10, 11])
    assert (envelope.kind, envelope.num_prompt_tokens, envelope.max_tokens) == (Kind.RESUME, 5, 6)
    assert envelope.deadline_s == 0.0, "it started in time"
    worker.step([number_of(resume.stream_id), number], [12, 99], finishes=[finish(number_of(resume.stream_id))])
    assert sink.flushes == [[10], [11], [12]], "and nothing of what the old number says"
    assert sink.ends == [finish(number_of(resume.stream_id))]
    assert worker.samples()["tokenfleet:streams_resumed_total"] == "1.0"


def test_what_the_engine_published_before_it_died_is_delivered_first_however_much_it_is() -> None:
    worker, sink = make_worker(), RecordingSink()
    number = submit(worker, sink, max_tokens=1 << 20)
    for token in range(2 * RECORDS_PER_WAKE_UP + 3):
        worker.publish([number], [token])

    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    assert sum(map(len, sink.flushes)) == 2 * RECORDS_PER_WAKE_UP + 3
    assert worker.broker.resumes[0].num_output_tokens == 2 * RECORDS_PER_WAKE_UP + 3


def test_a_stream_survives_any_number_of_engines_that_give_it_something() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)
    for token in range(2 * MAX_FRUITLESS + 1):
        worker.step([number_of(sink.stream_id or 0)], [token])
        lose(worker, sink)
        hear(worker, EngineReady(engine=0))

    assert last_ids(worker) == [5, 6, 7, *range(2 * MAX_FRUITLESS + 1)]
    assert sink.ends == [] and worker.client.num_streams == 1


def test_a_stream_under_which_engine_after_engine_dies_is_given_up() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)
    for _ in range(MAX_FRUITLESS + 1):
        lose(worker, sink)
        hear(worker, EngineReady(engine=0))

    assert [end.reason for end in sink.ends if isinstance(end, StreamError)] == ["engine_lost"]
    assert len(worker.broker.resumes) == MAX_FRUITLESS and worker.client.num_streams == 0


def test_the_deadline_of_what_had_not_started_still_holds() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)

    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    assert worker.broker.envelopes[-1].deadline_s == 9.5


def test_a_client_that_leaves_while_its_stream_is_parked_is_not_resumed() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)
    lose(worker, sink)

    worker.client.abort(sink.stream_id or StreamId(0))
    hear(worker, EngineReady(engine=0))

    assert (worker.broker.resumes, sink.ends) == ([], [])


@pytest.mark.parametrize(
    ("num_tokens", "is_stopped", "code"), [(3, True, FinishCode.ABORT), (8, False, FinishCode.LENGTH)]
)
def test_a_stream_that_only_waits_for_its_finish_needs_no_other_engine(
    num_tokens: int, is_stopped: bool, code: FinishCode
) -> None:
    worker, sink = make_worker(), RecordingSink()
    number = submit(worker, sink)
    for token in range(num_tokens):
        worker.step([number], [token])
    if is_stopped:
        worker.client.stop(sink.stream_id or StreamId(0))

    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    [end] = sink.ends
    assert isinstance(end, Finish)
    assert (end.code, end.num_prompt_tokens, end.num_output_tokens) == (code, 3, num_tokens)
    assert worker.broker.resumes == [] and worker.client.num_streams == 0


def test_a_resumed_stream_whose_next_engine_is_gone_already_waits_for_another() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)
    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    hear(worker, Rejected(stream_id=sink.stream_id or 0, reason="no_engine", retry_after_s=2))
    assert sink.ends == []
    hear(worker, EngineReady(engine=0))

    assert len(worker.broker.resumes) == 2


def test_a_new_request_is_still_refused_when_there_is_no_engine() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink)

    hear(worker, Rejected(stream_id=sink.stream_id or 0, reason="no_engine", retry_after_s=2))

    assert [end.reason for end in sink.ends if isinstance(end, StreamError)] == ["no_engine"]


def test_a_stream_whose_engine_does_not_come_back_in_time_ends_with_one_error() -> None:
    worker, sink = make_worker(timeout_s=-1.0), RecordingSink()
    submit(worker, sink)

    lose(worker, sink)
    worker.client.exchange()
    hear(worker, EngineReady(engine=0))

    assert [end.reason for end in sink.ends if isinstance(end, StreamError)] == ["engine_lost"]
    assert worker.broker.resumes == []


def test_a_whole_answer_is_computed_again_from_its_prompt() -> None:
    worker, sink = make_worker(), RecordingSink()
    submit(worker, sink, is_streaming=False)

    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    assert worker.broker.resumes[0].num_output_tokens == 0 and last_ids(worker) == [5, 6, 7]


def test_pieces_of_a_bulk_that_arrived_count_as_delivered() -> None:
    worker, sink = make_worker(), RecordingSink()
    number = submit(worker, sink, is_streaming=False)
    worker.publish(bulks=[(number, [10, 11])])
    worker.client.drain()

    lose(worker, sink)
    hear(worker, EngineReady(engine=0))

    assert last_ids(worker) == [5, 6, 7, 10, 11]


@pytest.mark.parametrize("place", [0, 40])
def test_streams_of_a_damaged_ring_start_anew_behind_what_they_had(place: int) -> None:
    worker, sink = make_worker(), RecordingSink()
    number = submit(worker, sink)
    first = sink.stream_id
    worker.publish([number], [10])
    worker.view[RING_HEADER_BYTES + place] ^= 1

    worker.client.drain()

    assert worker.broker.aborts == [Abort(stream_id=first or 0)]
    assert [resume.num_output_tokens for resume in worker.broker.resumes] == [0]
    worker.step([number, number_of(sink.stream_id or 0)], [99, 10])
    assert sink.flushes == [[10]] and sink.ends == []
