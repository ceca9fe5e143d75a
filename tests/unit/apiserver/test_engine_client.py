"""The worker's door to the engines: what goes out to the broker, and what comes back out of the rings to which sink."""

import asyncio

import pytest

from apiserver.engine_client import RECORDS_PER_WAKE_UP, EngineClient
from apiserver.sink import StreamError
from ipc.messages import (
    Abort,
    EngineLost,
    Generate,
    Rejected,
    SamplingParams,
    StreamId,
    make_stream_id,
    number_of,
)
from ipc.record import Failure, FailureCode, Finish
from ipc.ring import RING_HEADER_BYTES
from tests.unit.apiserver.in_process import RecordingSink, Worker, finish


def submit(client: EngineClient, sink: RecordingSink, prompt: bytes = bytes(16), **options: object) -> StreamId:
    return client.submit(
        prompt, SamplingParams(max_tokens=8), sink, request_id="r", is_streaming=True, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_request_goes_to_the_broker_with_all_that_places_and_computes_it() -> None:
    worker = Worker(block_size=4)
    prompt = b"".join(n.to_bytes(4, "little") for n in range(9))
    hashes = worker.client.block_hashes(prompt)

    stream_id = submit(worker.client, RecordingSink(), prompt, block_hashes=hashes, priority=-2, deadline_s=5.5)

    assert worker.broker.generates == [
        Generate(stream_id=stream_id, request_id="r", sampling=SamplingParams(max_tokens=8), block_hashes=hashes,
                 is_streaming=True, priority=-2, deadline_s=5.5)
    ]  # fmt: skip
    assert worker.broker.prompts == [prompt]
    envelope = worker.broker.envelopes[0]
    assert (envelope.stream_id, envelope.num_prompt_tokens, envelope.max_tokens) == (stream_id, 9, 8)
    assert (envelope.priority, envelope.deadline_s) == (-2, 5.5)
    assert len(hashes) == 2 * 16, "two full blocks of four"
    assert worker.broker.in_flight() == [stream_id]


def test_prompts_with_equal_first_blocks_want_the_same_engine() -> None:
    worker = Worker(block_size=4)
    shared = bytes(range(4 * 4 * 4))  # four blocks

    for prompt in (shared + bytes(16), shared + bytes(range(32)), bytes(80), bytes(12)):
        submit(worker.client, RecordingSink(), prompt, block_hashes=worker.client.block_hashes(prompt))

    one, other, different, short = (envelope.prefix_key for envelope in worker.broker.envelopes)
    assert one == other != 0
    assert different not in (0, one)
    assert short == 0, "it fills no block"


def test_no_hashes_without_prefix_caching() -> None:
    assert Worker(enable_prefix_caching=False).client.block_hashes(bytes(64)) == b""


def test_each_stream_is_flushed_once_per_wake_up_with_its_tokens_in_order() -> None:
    worker = Worker()
    sinks = [RecordingSink(), RecordingSink()]
    first, second = (number_of(submit(worker.client, sink)) for sink in sinks)

    worker.publish([first, second], [10, 20])
    worker.publish([second, 999, first, first], [21, 99, 11, 12])
    worker.client.drain()
    worker.step([first], [13])

    assert sinks[0].flushes == [[10, 11, 12], [13]]
    assert sinks[1].flushes == [[20, 21]]


def test_a_finish_comes_behind_the_last_token_and_ends_the_stream() -> None:
    worker = Worker()
    sink = RecordingSink()
    number = number_of(submit(worker.client, sink))
    end = finish(number)

    worker.step([number], [10], finishes=[end])
    worker.step([number], [11])

    assert (sink.flushes, sink.ends) == ([[10]], [end])
    assert worker.client.num_streams == 0


def test_a_bulk_in_pieces_arrives_whole_before_its_finish() -> None:
    worker = Worker()
    sink = RecordingSink()
    number = number_of(submit(worker.client, sink))

    worker.publish(bulks=[(number, [1, 2, 3])])
    worker.publish(bulks=[(number, [4])], finishes=[finish(number)])
    worker.client.drain()

    assert sink.flushes == [[1, 2, 3, 4]]
    assert sink.ends == [finish(number)]


def test_every_token_made_is_counted_also_those_nobody_waits_for() -> None:
    worker = Worker()
    number = number_of(submit(worker.client, RecordingSink()))

    worker.step([number, 999], [10, 11], finishes=[finish(number, stop_token_id=2)])
    worker.publish(bulks=[(998, [1, 2, 3])], finishes=[finish(998)])
    worker.client.drain()

    counted = worker.samples()['vllm:generation_tokens_total{engine="0",model_name="test"}']
    assert counted == "6.0", "two tokens, one stop token that only its finish tells of, three in bulk"


@pytest.mark.parametrize(
    ("code", "reason", "may_retry"),
    [
        (FailureCode.INTERNAL, "engine_error", False),
        (FailureCode.DEADLINE, "deadline", True),
        (FailureCode.TOO_LONG, "too_long", False),
        (FailureCode.OVERFLOW, "overflow", True),
    ],
)
def test_a_failure_ends_its_stream(code: FailureCode, reason: str, may_retry: bool) -> None:
    worker = Worker()
    sink = RecordingSink()
    number = number_of(submit(worker.client, sink))

    worker.publish(failures=[Failure(number, code, "text")])
    worker.client.drain()

    (error,) = sink.ends
    assert isinstance(error, StreamError)
    assert (error.reason, error.message, error.retry_after_s is not None) == (reason, "text", may_retry)
    assert worker.client.num_streams == 0


def test_a_refusal_tells_when_to_come_back() -> None:
    worker = Worker()
    sink = RecordingSink()
    stream_id = submit(worker.client, sink)
    worker.broker.inbox.append(Rejected(stream_id=stream_id, reason="max_num_queued_reqs", retry_after_s=7))

    worker.client.exchange()

    assert sink.ends == [StreamError("max_num_queued_reqs", "too many requests are waiting", 7)]


def test_what_an_engine_published_before_it_died_comes_before_its_loss() -> None:
    worker = Worker()
    ended, lost = RecordingSink(), RecordingSink()
    ids = [submit(worker.client, sink) for sink in (ended, lost)]
    numbers = [number_of(stream_id) for stream_id in ids]
    worker.publish(numbers, [10, 20], finishes=[finish(numbers[0])])
    worker.broker.inbox.append(EngineLost(engine=0, stream_ids=tuple(ids)))

    worker.client.exchange()

    assert ended.ends == [finish(numbers[0])]
    assert lost.flushes == [[20]]
    assert [type(end) for end in lost.ends] == [StreamError]


def test_an_aborted_stream_hears_nothing_more_and_is_aborted_once() -> None:
    worker = Worker()
    sink = RecordingSink()
    stream_id = submit(worker.client, sink)

    worker.client.abort(stream_id)
    worker.client.abort(stream_id)
    worker.step([number_of(stream_id)], [10], finishes=[finish(number_of(stream_id))])

    assert worker.broker.aborts == [Abort(stream_id=stream_id)]
    assert (sink.flushes, sink.ends) == ([], [])


def test_a_stopped_stream_still_gets_its_finish() -> None:
    worker = Worker()
    sink = RecordingSink()
    stream_id = submit(worker.client, sink)

    worker.client.stop(stream_id)
    worker.step(finishes=[finish(number_of(stream_id))])
    worker.client.stop(stream_id)

    assert worker.broker.aborts == [Abort(stream_id=stream_id, wants_finish=True)]
    assert sink.ends == [finish(number_of(stream_id))]


class CrashingSink(RecordingSink):
    def __init__(self, crashes_at: str) -> None:
        super().__init__()
        self._crashes_at = crashes_at

    def flush(self, now_s: float) -> None:
        if self._crashes_at == "flush":
            raise RuntimeError("as planned")
        super().flush(now_s)

    def finish(self, finish: Finish) -> None:
        raise RuntimeError("as planned")

    def fail(self, error: StreamError) -> None:
        super().fail(error)
        if self._crashes_at == "fail":
            raise RuntimeError("as planned")


@pytest.mark.parametrize("crashes_at", ["flush", "finish", "fail"])
def test_a_sink_that_crashes_ends_alone(crashes_at: str) -> None:
    worker = Worker()
    crashing, other = CrashingSink(crashes_at), RecordingSink()
    numbers = [number_of(submit(worker.client, sink)) for sink in (crashing, other)]

    worker.step(numbers, [10, 20], finishes=[finish(number) for number in numbers])

    assert [type(end) for end in crashing.ends] == [StreamError]
    assert (other.flushes, other.ends) == ([[20]], [finish(numbers[1])])
    assert worker.client.num_streams == 0


def test_a_damaged_ring_fails_what_it_may_have_held_and_goes_on_behind() -> None:
    worker = Worker()
    sink = RecordingSink()
    stream_id = submit(worker.client, sink)
    worker.publish([number_of(stream_id)], [10])
    worker.view[RING_HEADER_BYTES + 40] ^= 1

    worker.client.drain()

    assert [end.reason for end in sink.ends if isinstance(end, StreamError)] == ["ring_corrupt"]
    assert worker.broker.aborts == [Abort(stream_id=stream_id)]
    later = RecordingSink()
    worker.step([number_of(submit(worker.client, later))], [11])
    assert later.flushes == [[11]]


def test_a_long_backlog_is_taken_in_turns_with_the_rest_of_the_loop() -> None:
    worker = Worker()
    sink = RecordingSink()
    number = number_of(submit(worker.client, sink))
    for _ in range(RECORDS_PER_WAKE_UP + 5):
        worker.publish([number], [1])

    async def serve() -> list[int]:
        worker.client.start(asyncio.get_running_loop())
        before = [len(tokens) for tokens in sink.flushes]
        while len(sink.flushes) < 2:
            await asyncio.sleep(0)
        worker.client.close()
        return before

    assert asyncio.run(serve()) == [RECORDS_PER_WAKE_UP], "the first turn takes a bounded part"
    assert sum(len(tokens) for tokens in sink.flushes) == RECORDS_PER_WAKE_UP + 5


def test_the_bell_wakes_the_loop() -> None:
    worker = Worker()
    sink = RecordingSink()
    number = number_of(submit(worker.client, sink))

    async def serve() -> None:
        worker.client.start(asyncio.get_running_loop())
        worker.publish([number], [10])
        async with asyncio.timeout(5):
            while not sink.flushes:
                await asyncio.sleep(0.001)
        worker.client.close()

    asyncio.run(serve())

    assert sink.flushes == [[10]]


@pytest.mark.parametrize(("longest_s", "flushed"), [(60.0, [0, 0, 0, 3]), (-1.0, [0, 2, 3, 3])])
def test_the_first_of_many_requests_do_not_wait_for_the_last(
    monkeypatch: pytest.MonkeyPatch, longest_s: float, flushed: list[int]
) -> None:
    monkeypatch.setattr("apiserver.engine_client.HELD_BACK_S", longest_s)
    worker = Worker()

    async def serve() -> list[int]:
        worker.client.start(asyncio.get_running_loop())
        seen = []
        for _ in range(3):  # within one turn of the loop
            submit(worker.client, RecordingSink())
            seen.append(worker.broker.num_flushed)
        await asyncio.sleep(0)
        worker.client.close()
        return [*seen, worker.broker.num_flushed]

    assert asyncio.run(serve()) == flushed


def test_an_answer_that_a_send_uncovered_is_read_in_the_next_turn_and_not_inside_submit() -> None:
    worker = Worker()
    sink = RecordingSink()

    async def serve() -> int:
        worker.client.start(asyncio.get_running_loop())
        worker.broker.inbox.append(Rejected(stream_id=make_stream_id(3, 1, 1), reason="no_engine", retry_after_s=2))
        submit(worker.client, sink)
        num_ends_inside = len(sink.ends)
        await asyncio.sleep(0)
        worker.client.close()
        return num_ends_inside

    assert asyncio.run(serve()) == 0
    assert len(sink.ends) == 1


def test_a_number_is_not_given_again_while_its_stream_lives() -> None:
    worker = Worker()
    first = submit(worker.client, RecordingSink())
    worker.client._next_number = 0xFFFFFFFF  # four billion requests later

    numbers = [number_of(submit(worker.client, RecordingSink())) for _ in range(2)]

    assert number_of(first) == 1
    assert numbers == [0xFFFFFFFF, 2]
