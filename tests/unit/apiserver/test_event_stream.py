"""One response from submission to its last byte, over the real HTTP protocol: what the client reads, and when."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from starlette.types import Message, Receive, Scope, Send

from apiserver.errors import ApiError, Overloaded
from apiserver.event_stream import (
    BYTES_PER_HELD_TOKEN,
    NUM_HELD_LOOSELY,
    ChoiceOf,
    Events,
    StreamedChoice,
    StreamedResponse,
    collect,
)
from apiserver.generation import CollectedChoice, GenerationRequest, Prompt
from apiserver.logprobs import TokenTexts
from apiserver.schema.responses import ChatEvents
from apiserver.text_stream import TextStream
from ipc.messages import Abort, EngineLost, Rejected, SamplingParams, make_stream_id
from ipc.record import Failure, FailureCode, FinishCode, Scored
from tests.unit.apiserver.in_process import SMILE, SPECIAL, Connection, NoDecoder, Worker, finish, token_table

HELLO, WORLD, COMMA, JAPAN, QUOTE = range(5)
ST, OP = 8, 9
BUFFER_BYTES = BYTES_PER_HELD_TOKEN * 100


def request(**fields: Any) -> GenerationRequest:  # Any: fields of many types
    values: dict[str, Any] = {
        "request_id": "r", "prompts": (Prompt(bytes(16)),), "n": 1, "sampling": SamplingParams(max_tokens=8),
        "max_tokens": (8,), "is_stream": True, **fields,
    }  # fmt: skip
    return GenerationRequest(**values)


class Server:
    """An application that streams every request it gets, and the worker behind it."""

    def __init__(
        self,
        generation: GenerationRequest | None = None,
        choice_of: ChoiceOf = StreamedChoice,
        events: Events | None = None,
    ) -> None:
        self.worker = Worker()
        self.events = events
        self.choice_of = choice_of
        self.generation = generation or request()
        self.errors: list[ApiError] = []

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = StreamedResponse(
            self.generation,
            self.events or ChatEvents("chatcmpl-1", "test", TokenTexts(token_table(), NoDecoder())),
            texts(self.generation),
            self.worker.client,
            self.worker.metrics,
            BUFFER_BYTES,
            self.choice_of,
        )
        try:
            await response.run(scope, receive, send)
        except ApiError as error:
            self.errors.append(error)
            await send({"type": "http.response.start", "status": error.status, "headers": []})
            await send({"type": "http.response.body", "body": error.body()})

    async def connect(self, *, version: str = "1.1") -> Connection:
        """A client whose request has been read."""
        connection = Connection(self.app)
        connection.request(version=version)
        await connection.settle()
        return connection

    async def connect_and_pause(self) -> Connection:
        """A client that has got Hello and reads no more."""
        connection = await self.connect()
        self.worker.step([1], [HELLO])
        await connection.settle()
        connection.pause()
        return connection


def texts(generation: GenerationRequest) -> list[TextStream]:
    return [
        TextStream(token_table(), NoDecoder(), stop=generation.stop, include_stop=generation.include_stop)
        for _ in range(generation.num_choices)
    ]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def events(body: bytes) -> list[Any]:
    """Data of every event; the last is "[DONE]" where the stream is whole."""
    parts = body.split(b"\n\n")
    assert parts[-1] == b"", "every event is whole"
    assert all(part.startswith(b"data: ") for part in parts[:-1])
    return [part[6:].decode() if part == b"data: [DONE]" else msgspec.json.decode(part[6:]) for part in parts[:-1]]


def contents(body: bytes, index: int = 0) -> list[str]:
    """The pieces of one choice's text, as they came."""
    choices = [event["choices"][0] for event in events(body) if isinstance(event, dict) and event.get("choices")]
    deltas = [choice["delta"] for choice in choices if choice["index"] == index]
    return [delta["content"] for delta in deltas if delta.get("content")]


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
        server.worker.step(finishes=[finish(1, FinishCode.ABORT, num_output_tokens=4)])
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


def test_a_paused_client_gets_everything_when_it_reads_again() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()
        written = len(connection.received)

        for token in (COMMA, WORLD):
            server.worker.step([1], [token])
        server.worker.step(finishes=[finish(1)])
        await connection.settle()
        assert len(connection.received) == written, "nothing is written to a paused transport"
        connection.resume()
        await connection.settle()

        assert contents(connection.body) == ["Hello", ", world"]
        assert events(connection.body)[-1] == "[DONE]"

    run(client)


def test_a_long_text_that_waited_for_its_client_comes_whole() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()

        for _ in range(NUM_HELD_LOOSELY + 20):
            server.worker.step([1], [COMMA])
        connection.resume()
        server.worker.step(finishes=[finish(1)])
        await connection.settle()

        assert "".join(contents(connection.body)) == "Hello" + "," * (NUM_HELD_LOOSELY + 20)

    run(client)


def test_a_client_that_stops_reading_at_the_opening_event_gets_no_more_until_it_reads() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        connection.reads_bytes = 1 + len(b"HTTP/1.1 200 OK") + 150  # the headers, and some of the event behind them
        server.worker.step([1], [HELLO])
        await connection.settle()

        assert connection.head.startswith("http/1.1 200 ok")
        assert connection.protocol.flow.write_paused
        server.worker.step([1], [WORLD])
        assert contents(connection.body) == ["Hello"], "what left with the headers, and nothing behind it"
        connection.reads_bytes = 1 << 30
        connection.resume()
        assert contents(connection.body) == ["Hello", " world"]

    run(client)


def test_a_client_that_never_reads_is_cut_at_the_bound_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect_and_pause()

        for _ in range(101):
            server.worker.step([1], [COMMA])
        await connection.settle()

        assert connection.was_aborted
        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, 1))]
        assert server.worker.samples()['tokenfleet:shed_total{reason="slow_client"}'] == "1.0"
        assert connection.num_running == 0
        assert not caplog.records, "nothing went wrong here"

    run(client)


@pytest.mark.parametrize("leaves_after", ["request", "first output", "pause"])
def test_a_client_that_leaves_has_its_stream_aborted(leaves_after: str, caplog: pytest.LogCaptureFixture) -> None:
    async def client() -> None:
        server = Server(request(n=2))
        connection = await server.connect()
        if leaves_after != "request":
            server.worker.step([1, 2], [HELLO, HELLO])
            await connection.settle()
        if leaves_after == "pause":
            connection.pause()

        connection.leave()
        server.worker.step([1, 2], [WORLD, WORLD])  # before the response has taken notice
        await connection.settle()

        assert server.worker.broker.aborts == [Abort(stream_id=make_stream_id(3, 1, number)) for number in (1, 2)]
        assert server.worker.client.num_streams == 0
        assert connection.num_running == 0
        assert not caplog.records, "nothing is written to a connection that is gone"

    run(client)


def test_a_client_that_left_before_its_turn_costs_the_engine_nothing() -> None:
    async def client() -> None:
        server = Server()
        connection = Connection(server.app)
        connection.request()
        connection.leave()

        await connection.settle()

        assert server.worker.broker.sent == []
        assert connection.num_running == 0

    run(client)


def test_the_connection_serves_the_next_request_also_one_that_was_waiting() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        connection.request()  # pipelined
        await connection.settle()
        assert len(server.worker.broker.generates) == 1

        server.worker.step([1], [HELLO])
        await connection.settle()
        server.worker.step(finishes=[finish(1)])
        await connection.settle()
        assert len(server.worker.broker.generates) == 2
        connection.received = b""
        server.worker.step([2], [WORLD])
        await connection.settle()
        server.worker.step(finishes=[finish(2)])
        await connection.settle()

        assert contents(connection.body) == [" world"]
        assert not connection.is_closing()

    run(client)


def test_http_1_0_reads_plain_bytes_until_the_connection_closes() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect(version="1.0")

        server.worker.step([1], [HELLO])
        await connection.settle()
        server.worker.step([1], [WORLD], finishes=[finish(1)])
        await connection.settle()

        assert "transfer-encoding" not in connection.head
        assert contents(connection.body) == ["Hello", " world"]
        assert events(connection.body)[-1] == "[DONE]"
        assert connection.is_closing()

    run(client)


class PlainClient:
    """An ASGI server without the extension: collects the body, leaves on demand."""

    def __init__(self) -> None:
        self.body = b""
        self.is_complete = False
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.body":
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


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


# ── one body ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MODEL = 'engine="0",model_name="test"'


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
