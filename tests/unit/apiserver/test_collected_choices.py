"""One body from submission to its end: all choices, delivered once, and what it is counted as."""

import asyncio

import pytest

from apiserver.errors import ApiError
from apiserver.event_stream import (
    collect,
)
from apiserver.generation import CollectedChoice, GenerationRequest
from ipc.messages import Abort, make_stream_id
from ipc.record import Failure, FailureCode, FinishCode
from tests.unit.apiserver.in_process import SMILE, Worker, finish
from tests.unit.apiserver.stream_rig import (
    COMMA,
    HELLO,
    MODEL,
    OP,
    ST,
    WORLD,
    PlainClient,
    request,
    run,
    texts,
)


async def collecting(
    worker: Worker, generation: GenerationRequest, reader: PlainClient
) -> list[CollectedChoice] | None:
    return await collect(generation, texts(generation), worker.client, worker.metrics, {"type": "http"}, reader.receive)


@pytest.mark.parametrize(("told", "reason"), [((3,), 3), ((), None)])
def test_a_body_has_all_choices_and_asks_the_engine_to_deliver_once(told: tuple[int, ...], reason: int | None) -> None:
    """And says which stop token ended one, but not that it was the model's own end."""

    async def client() -> None:
        worker, reader, generation = Worker(), PlainClient(), request(n=2, is_stream=False, told_stop_ids=told)
        task = asyncio.create_task(collecting(worker, generation, reader))
        await reader.settle()
        assert [message.is_streaming for message in worker.broker.generates] == [False, False]

        worker.publish(bulks=[(2, [WORLD])], finishes=[finish(2)])
        worker.publish(bulks=[(1, [HELLO, *SMILE])], finishes=[finish(1, FinishCode.STOP, stop_token_id=3)])
        worker.client.drain()

        choices = await task
        assert choices is not None
        assert [choice.content for choice in choices] == ["Hello😀", " world"]
        assert [(choice.finish_reason, choice.stop_reason) for choice in choices] == [
            ("stop", reason),
            ("length", None),
        ]

    run(client)


def test_stop_strings_make_the_engine_deliver_step_by_step_and_cut_the_body() -> None:
    async def client() -> None:
        worker, reader, generation = Worker(), PlainClient(), request(is_stream=False, stop=("STOP",))
        task = asyncio.create_task(collecting(worker, generation, reader))
        await reader.settle()
        assert worker.broker.generates[0].is_streaming

        for token in (HELLO, ST, OP, WORLD):
            worker.step([1], [token])
        assert worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1), wants_finish=True)]
        worker.step(finishes=[finish(1, FinishCode.ABORT)])

        choices = await task
        assert choices is not None
        assert (choices[0].content, choices[0].stop_reason, choices[0].num_tokens) == ("Hello", "STOP", 3)

    run(client)


def test_a_client_that_leaves_before_its_body_has_everything_aborted() -> None:
    async def client() -> None:
        worker, reader, generation = Worker(), PlainClient(), request(n=2, is_stream=False)
        task = asyncio.create_task(collecting(worker, generation, reader))
        await reader.settle()

        reader.left.set()

        assert await task is None
        assert len(worker.broker.aborts) == 2
        assert worker.client.num_streams == 0

    run(client)


def test_a_choice_that_fails_fails_the_body_and_aborts_the_rest() -> None:
    async def client() -> None:
        worker, reader, generation = Worker(), PlainClient(), request(n=2, is_stream=False)
        task = asyncio.create_task(collecting(worker, generation, reader))
        await reader.settle()

        worker.publish(failures=[Failure(1, FailureCode.TOO_LONG, "too long")])
        worker.client.drain()

        with pytest.raises(ApiError, match="too long") as caught:
            await task
        assert caught.value.status == 400
        assert worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 2))]

    run(client)


def test_a_body_takes_its_latencies_from_the_engine() -> None:
    async def client() -> None:
        worker, reader, generation = Worker(), PlainClient(), request(is_stream=False)
        task = asyncio.create_task(collecting(worker, generation, reader))
        await reader.settle()
        end = finish(1, num_output_tokens=3, queue_us=1_000_000, prefill_us=500_000, decode_us=4_000_000)
        worker.publish(bulks=[(1, [HELLO, COMMA, WORLD])], finishes=[end])
        worker.client.drain()
        await task

        samples = worker.samples()

        assert samples[f"vllm:time_to_first_token_seconds_sum{{{MODEL}}}"] == "1.5"
        assert samples[f"vllm:inter_token_latency_seconds_count{{{MODEL}}}"] == "2.0"
        assert samples[f"vllm:inter_token_latency_seconds_sum{{{MODEL}}}"] == "4.0"

    run(client)
