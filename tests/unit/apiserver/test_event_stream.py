"""One response from submission to its last byte, over the real HTTP protocol: what the client reads, and when."""

import asyncio
import re

from apiserver.errors import Overloaded
from ipc.messages import Abort, EngineLost, Rejected, SamplingParams, make_stream_id
from ipc.record import Failure, FailureCode, FinishCode, Scored
from tests.unit.apiserver.in_process import SMILE, SPECIAL, finish
from tests.unit.apiserver.stream_rig import (
    COMMA,
    HELLO,
    JAPAN,
    MODEL,
    OP,
    QUOTE,
    ST,
    WORLD,
    PlainClient,
    Server,
    contents,
    events,
    request,
    run,
)


def test_a_stream_is_headers_text_as_it_comes_finish_and_done() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        assert connection.received == b"", "no status before there is output"

        server.worker.step([1], [HELLO])
        await connection.settle()
        for token in (SPECIAL, *SMILE, QUOTE):
            server.worker.step([1], [token])
        server.worker.step([1], [WORLD], finishes=[finish(1)])
        await connection.settle()

        assert connection.head.startswith("http/1.1 200 ok")
        assert "content-type: text/event-stream" in connection.head
        assert "cache-control: no-cache" in connection.head
        assert "x-accel-buffering: no" in connection.head
        assert contents(connection.body) == ["Hello", "😀", '"quote"\n', " world"]
        *_, last, done = events(connection.body)
        assert last["choices"][0]["finish_reason"] == "length"
        assert done == "[DONE]"
        assert connection.received.endswith(b"\r\n0\r\n\r\n")

    run(client)


def test_logprobs_stay_with_their_tokens_and_the_one_that_stopped_comes_last() -> None:
    async def client() -> None:
        server = Server(request(sampling=SamplingParams(max_tokens=8, num_logprobs=1)))
        connection = await server.connect()
        assert server.worker.broker.generates[0].is_streaming

        def scored(token: int, is_stop: bool = False) -> Scored:
            return Scored(1, token, is_stop, 1, -token / 4, [token], [-token / 4])

        server.worker.publish(scored=[scored(HELLO)])
        server.worker.publish(scored=[scored(SMILE[0])])
        server.worker.client.drain()
        await connection.settle()
        server.worker.publish(scored=[scored(SMILE[1])])
        server.worker.publish(scored=[scored(SPECIAL, is_stop=True)])
        server.worker.publish(finishes=[finish(1, FinishCode.STOP, stop_token_id=SPECIAL, num_output_tokens=4)])
        server.worker.client.drain()
        await connection.settle()

        choices = [e["choices"][0] for e in events(connection.body)[:-1]]
        assert contents(connection.body) == ["Hello", "😀"]
        assert [
            [entry["logprob"] for entry in choice["logprobs"]["content"]] for choice in choices if choice["logprobs"]
        ] == [[-HELLO / 4, -SMILE[0] / 4], [-SMILE[1] / 4], [-SPECIAL / 4]]
        assert choices[-1]["finish_reason"] == "stop"

    run(client)


def test_logprobs_end_where_a_stop_string_does() -> None:
    async def client() -> None:
        server = Server(request(sampling=SamplingParams(max_tokens=8, num_logprobs=0), stop=("STOP",)))
        connection = await server.connect()

        for token in (HELLO, ST, OP, WORLD):
            server.worker.publish(scored=[Scored(1, token, False, 1, -1.0, [], [])])
        server.worker.client.drain()
        await connection.settle()
        num_events = connection.body.count(b"data: ")
        server.worker.publish(scored=[Scored(1, WORLD, False, 1, -1.0, [], [])])  # the engine hears of the stop later
        server.worker.client.drain()
        await connection.settle()
        assert connection.body.count(b"data: ") == num_events
        server.worker.step(finishes=[finish(1, FinishCode.ABORT, num_output_tokens=5)])
        await connection.settle()

        entries = [
            entry["token"]
            for event in events(connection.body)[:-1]
            if event["choices"][0]["logprobs"]
            for entry in event["choices"][0]["logprobs"]["content"]
        ]
        assert "".join(entries) == "HelloSTOP!" and contents(connection.body) == ["Hello"]

    run(client)


def test_tokens_that_piled_up_share_one_event_and_one_write() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        server.worker.step([1], [HELLO])
        await connection.settle()
        writes_before = connection.received.count(b"data: ")

        for token in (COMMA, WORLD, JAPAN):
            server.worker.publish([1], [token])
        server.worker.client.drain()

        assert connection.received.count(b"data: ") == writes_before + 1
        assert contents(connection.body) == ["Hello", ", world日本"]

    run(client)


def test_choices_interleave_and_usage_counts_them_all() -> None:
    async def client() -> None:
        server = Server(request(n=2, include_usage=True))
        connection = await server.connect()

        server.worker.step([1, 2], [HELLO, JAPAN])
        await connection.settle()
        server.worker.step([1, 2], [WORLD, COMMA], finishes=[finish(1, num_cached_tokens=3)])
        server.worker.step([2], [QUOTE], finishes=[finish(2, FinishCode.STOP, stop_token_id=7, num_output_tokens=4)])
        await connection.settle()

        assert contents(connection.body, 0) == ["Hello", " world"]
        assert contents(connection.body, 1) == ["日本", ",", '"quote"\n']
        *_, last, usage, done = events(connection.body)
        assert (last["choices"][0]["index"], last["choices"][0]["finish_reason"]) == (1, "stop")
        assert usage["choices"] == []
        assert usage["usage"] == {
            "prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 3},
        }  # fmt: skip
        assert done == "[DONE]"

    run(client)


def test_a_refusal_before_any_output_is_a_status() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        refused = Rejected(stream_id=make_stream_id(3, 1, 1), reason="no_engine", retry_after_s=9)
        server.worker.broker.inbox.append(refused)

        server.worker.client.exchange()
        await connection.settle()

        assert connection.head.startswith("http/1.1 503")
        assert [error.headers for error in server.errors if isinstance(error, Overloaded)] == [[(b"retry-after", b"9")]]

    run(client)


def test_an_engine_lost_in_mid_stream_is_one_error_event() -> None:
    async def client() -> None:
        server = Server(request(include_usage=True))
        connection = await server.connect()
        server.worker.step([1], [HELLO])
        await connection.settle()

        server.worker.broker.inbox.append(EngineLost(engine=0, stream_ids=(make_stream_id(3, 1, 1),)))
        server.worker.client.exchange()
        await connection.settle()

        *_, error, done = events(connection.body)
        assert error["error"]["message"] == "the engine that served this request was lost"
        assert done == "[DONE]"
        assert sum("error" in event for event in events(connection.body) if isinstance(event, dict)) == 1
        assert not connection.is_closing(), "the response is whole: the connection lives on"

    run(client)


def test_a_choice_that_fails_leaves_the_others_their_text() -> None:
    async def client() -> None:
        server = Server(request(n=2))
        connection = await server.connect()
        server.worker.step([1, 2], [HELLO, HELLO])
        await connection.settle()

        server.worker.publish(failures=[Failure(1, FailureCode.INTERNAL, "broken")])
        server.worker.publish([2], [WORLD], finishes=[finish(2)])
        server.worker.client.drain()
        await connection.settle()

        assert contents(connection.body, 1) == ["Hello", " world"]
        assert [e["error"]["message"] for e in events(connection.body) if "error" in e] == ["broken"]
        assert events(connection.body)[-1] == "[DONE]"

    run(client)


def test_a_stop_string_ends_the_text_stops_the_engine_and_waits_for_its_counts() -> None:
    async def client() -> None:
        server = Server(request(stop=("STOP",), include_usage=True))
        connection = await server.connect()
        server.worker.step([1], [HELLO])
        await connection.settle()

        for token in (ST, OP, WORLD):
            server.worker.step([1], [token])
        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1), wants_finish=True)]
        server.worker.step(finishes=[finish(1, FinishCode.ABORT, num_cached_tokens=2, num_output_tokens=4)])
        await connection.settle()

        assert contents(connection.body) == ["Hello"]
        *_, last, usage, _ = events(connection.body)
        assert (last["choices"][0]["finish_reason"], last["choices"][0]["stop_reason"]) == ("stop", "STOP")
        assert usage["usage"]["completion_tokens"] == 3, "up to the token that completed the stop string"
        assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}

    run(client)


def undated(body: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b"", body)


def test_without_the_extension_the_same_bytes_go_through_asgi() -> None:
    async def client() -> None:
        server, plain = Server(), Server()
        connection = await server.connect()
        reader = PlainClient()
        task = asyncio.create_task(plain.app({"type": "http"}, reader.receive, reader.send))
        await reader.settle()

        for worker in (server.worker, plain.worker):
            worker.step([1], [HELLO])
            await connection.settle()
            worker.step([1], [JAPAN])
            await connection.settle()
            worker.step([1], [QUOTE], finishes=[finish(1)])
            await connection.settle()
        await task

        assert reader.is_complete
        assert contents(reader.body) == ["Hello", "日本", '"quote"\n']
        assert undated(reader.body) == undated(connection.body)

    run(client)


def test_without_the_extension_a_client_that_leaves_has_its_stream_aborted_too() -> None:
    async def client() -> None:
        server, reader = Server(), PlainClient()
        task = asyncio.create_task(server.app({"type": "http"}, reader.receive, reader.send))
        await reader.settle()

        reader.left.set()
        await task

        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1))]

    run(client)


def test_a_stream_leaves_its_latencies_and_counts() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        server.worker.step([1], [HELLO])
        await connection.settle()
        server.worker.publish([1], [COMMA])
        server.worker.publish([1], [WORLD])
        server.worker.client.drain()
        end = finish(1, num_prompt_tokens=4, num_cached_tokens=3, num_output_tokens=3, queue_us=500_000)
        server.worker.step(finishes=[end])

        samples = server.worker.samples()

        assert samples[f"vllm:time_to_first_token_seconds_count{{{MODEL}}}"] == "1.0"
        assert samples[f"vllm:inter_token_latency_seconds_count{{{MODEL}}}"] == "2.0"
        assert float(samples[f"vllm:inter_token_latency_seconds_sum{{{MODEL}}}"]) < 5
        assert samples[f"vllm:request_queue_time_seconds_sum{{{MODEL}}}"] == "0.5"
        assert samples[f"vllm:prompt_tokens_cached_total{{{MODEL}}}"] == "3.0"
        assert samples[f"vllm:request_prefill_kv_computed_tokens_sum{{{MODEL}}}"] == "1.0"
        assert samples[f"vllm:generation_tokens_total{{{MODEL}}}"] == "3.0"
        assert samples['vllm:request_success_total{engine="0",finished_reason="length",model_name="test"}'] == "1.0"

    run(client)
