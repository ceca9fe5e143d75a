"""An application that streams every request it gets, over the real HTTP protocol, and what its client read."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from apiserver.errors import ApiError
from apiserver.event_stream import (
    BYTES_PER_HELD_TOKEN,
    ChoiceOf,
    Events,
    StreamedChoice,
    StreamedResponse,
)
from apiserver.generation import GenerationRequest, Prompt
from apiserver.logprobs import TokenTexts
from apiserver.schema.responses import ChatEvents
from apiserver.text_stream import TextStream
from ipc.messages import SamplingParams
from tests.unit.apiserver.in_process import Connection, NoDecoder, Worker, token_table

HELLO, WORLD, COMMA, JAPAN, QUOTE = range(5)
ST, OP = 8, 9
BUFFER_BYTES = BYTES_PER_HELD_TOKEN * 100
MODEL = 'engine="0",model_name="test"'


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
