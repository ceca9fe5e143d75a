"""A stream whose text is parsed: which event comes when, logprobs beside their tokens, a client that does not read."""

from typing import Any

from starlette.types import Receive, Scope, Send

from apiserver.event_stream import StreamedResponse
from apiserver.logprobs import TokenTexts
from apiserver.parsed_choice import parsed_choice_of
from apiserver.parsed_text import OutputFormat, ParsedText
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.reasoning.style import Phase, ReasoningStyle
from apiserver.schema.responses import ChatEvents
from ipc.messages import SamplingParams
from ipc.record import FinishCode, Scored
from tests.unit.apiserver.in_process import SMILE, Connection, NoDecoder, Worker, finish, token_table
from tests.unit.apiserver.stream_rig import BUFFER_BYTES, events, request, run

HELLO, WORLD, COMMA, JAPAN = range(4)
ST, OP = 8, 9
STYLE = ReasoningStyle("Hello", "STOP!")  # a marker of one token, and one of two
FORMAT = OutputFormat(lambda: ReasoningSplitter(STYLE, Phase.UNDECIDED))


class Server:
    """Streams one request, whose answer is parsed."""

    def __init__(self, **fields: Any) -> None:  # Any: fields of GenerationRequest
        self.worker = Worker()
        self.generation = request(output_format=FORMAT, **fields)
        self.text = ParsedText(FORMAT, token_table(), NoDecoder(), stop=self.generation.stop)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = ChatEvents("chatcmpl-1", "test", TokenTexts(token_table(), NoDecoder()))
        response = StreamedResponse(
            self.generation, sent, [self.text], self.worker.client, self.worker.metrics, BUFFER_BYTES,
            parsed_choice_of(sent),
        )  # fmt: skip
        await response.run(scope, receive, send)

    async def connect(self) -> Connection:
        connection = Connection(self.app)
        connection.request()
        await connection.settle()
        return connection


def said(body: bytes) -> list[tuple[str, str]]:
    """Field and text of every delta that has one."""
    deltas = [event["choices"][0]["delta"] for event in events(body) if isinstance(event, dict)]
    return [
        (name, delta[name]) for delta in deltas for name in ("reasoning", "content") if delta.get(name)
    ]  # fmt: skip


def test_reasoning_and_content_are_events_of_their_own_and_markers_are_none() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()

        for token in (HELLO, WORLD, *SMILE, ST, OP):
            server.worker.step([1], [token])
            await connection.settle()
        assert server.text.ready is not None, "behind the reasoning tokens are written as they come"
        for token in (JAPAN, COMMA):
            server.worker.step([1], [token])
        server.worker.step(finishes=[finish(1, FinishCode.STOP)])
        await connection.settle()

        assert said(connection.body) == [
            ("reasoning", " world"), ("reasoning", "😀"), ("content", "日本"), ("content", ","),
        ]  # fmt: skip
        assert events(connection.body)[-2]["choices"][0]["finish_reason"] == "stop"
        assert server.text.num_reasoning_tokens == 3

    run(client)


def test_what_could_have_been_a_marker_comes_out_at_the_end() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()

        for token in (HELLO, WORLD, ST):
            server.worker.step([1], [token])
        server.worker.step(finishes=[finish(1)])
        await connection.settle()

        assert said(connection.body) == [("reasoning", " world"), ("reasoning", "ST")]
        assert server.text.num_reasoning_tokens == 2

    run(client)


def test_logprobs_of_tokens_that_are_held_back_come_with_the_next_event() -> None:
    async def client() -> None:
        server = Server(sampling=SamplingParams(max_tokens=8, num_logprobs=0))
        connection = await server.connect()

        for token in (HELLO, WORLD, ST, OP, JAPAN, COMMA):
            server.worker.publish(scored=[Scored(1, token, False, 1, -1.0, [], [])])
            server.worker.client.drain()
            await connection.settle()
        server.worker.step(finishes=[finish(1, num_output_tokens=6)])
        await connection.settle()

        entries = [
            [entry["token"] for entry in event["choices"][0]["logprobs"]["content"]]
            for event in events(connection.body)
            if isinstance(event, dict) and event["choices"][0]["logprobs"]
        ]
        assert entries == [["Hello", " world"], ["ST", "OP!", "日本"], [","]]

    run(client)


def test_a_client_that_reads_again_gets_the_parts_that_piled_up() -> None:
    async def client() -> None:
        server = Server()
        connection = await server.connect()
        server.worker.step([1], [HELLO])
        await connection.settle()
        connection.pause()
        for token in (WORLD, COMMA, ST, OP, JAPAN):
            server.worker.step([1], [token])
        server.worker.step(finishes=[finish(1)])
        await connection.settle()
        assert said(connection.body) == []

        connection.resume()
        await connection.settle()

        assert said(connection.body) == [("reasoning", " world,"), ("content", "日本")]
        assert events(connection.body)[-1] == "[DONE]"

    run(client)
