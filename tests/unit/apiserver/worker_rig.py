"""One API worker without its processes: the real application, client and ring, a scripted engine behind them.

The model is a byte-level tokenizer of 256 bytes, a few merges and special tokens, so that every text has known ids.
"""

import asyncio
import json
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from starlette.types import Message, Scope
from tokenizers import Tokenizer as ReferenceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from apiserver.app import build_app
from apiserver.engine_client import EngineClient
from apiserver.journal import Journal
from apiserver.keyring import Keyring
from apiserver.metrics import WorkerMetrics
from apiserver.preload import Preloaded, preload
from apiserver.responses.store import ResponseStore
from apiserver.services import Services
from apiserver.tracing import RequestTracer
from config.model_folder import ModelFolder, read_model_folder
from config.settings import EngineSettings, ModelSettings, ServerSettings, Settings
from ipc.doorbell import Doorbell
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage, State
from ipc.messages import (
    NO_LOGPROBS,
    Abort,
    Answered,
    Control,
    EngineAnswer,
    EngineLost,
    Envelope,
    ForWorker,
    FromWorker,
    Generate,
    Rejected,
    Resume,
    number_of,
)
from ipc.metrics_page import create_metrics_segment
from ipc.record import NO_STOP_TOKEN, Attachment, Embedding, Failure, Finish, FinishCode, Scored, pack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ipc.shelf import Shelf, format_shelf, shelf_segment_bytes

T = TypeVar("T")

MAX_MODEL_LEN = 512
EOS = "<|im_end|>"
TEXT = "Hello wörld 👍🏽!"  # of several bytes, and tokens, a character
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRAINING = ["the quick brown fox jumps over the lazy dog", "hello hello world", "assistant user system"]


def make_model_folder(path: Path, *, template: str | None = CHATML, generation: dict[str, Any] | None = None) -> Path:
    """A Hugging Face folder without weights."""
    tokenizer = ReferenceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": MAX_MODEL_LEN,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps(generation or {}))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>", "eos_token": EOS}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


Script = Callable[[Generate, list[int]], "list[int] | Failure | Rejected | EngineLost | None"]
"""What becomes of a request: its output tokens, a failure, a refusal, the loss of its engine; None: it runs on."""


class ScriptedEngine:
    """Broker and engine in one: apiserver.engine_client.Broker."""

    def __init__(self, script: Script, ring: RingWriter) -> None:
        self.script, self._ring = script, ring
        self.requests: list[Generate] = []
        self.prompts: list[list[int]] = []
        self.aborted: list[int] = []
        self.controls: list[Control] = []
        self.control_answers: tuple[EngineAnswer, ...] | None = (EngineAnswer(engine=0, ticket=0, count=1),)
        """What the engines say to an operator; None: nothing."""
        self.attachment: bytes | None = None
        """JSON that stands beside the output of a request with kv_transfer_params."""
        self.client: EngineClient | None = None
        self._doorbell = Doorbell.create()
        self._inbox: list[ForWorker] = []

    @property
    def fd(self) -> int:
        return self._doorbell.fd

    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        assert not isinstance(message, Resume)
        if isinstance(message, Abort):
            self.aborted.append(message.stream_id)
            if message.wants_finish:
                asyncio.get_running_loop().call_soon(self.finish, message.stream_id, 0, FinishCode.ABORT)
            return
        if isinstance(message, Control):
            self._answer_control(message)
            return
        ids = array("I", prompt or b"").tolist()
        assert len(ids) == envelope.num_prompt_tokens
        self.requests.append(msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Generate))
        self.prompts.append(ids)
        asyncio.get_running_loop().call_soon(self._answer, message, ids)

    def flush(self) -> None:
        pass

    def receive(self) -> list[ForWorker]:
        messages, self._inbox = self._inbox, []
        return messages

    def close(self) -> None:
        pass

    def _answer_control(self, control: Control) -> None:
        assert self.client is not None
        self.controls.append(control)
        self._inbox.append(control)
        if self.control_answers is not None:
            self._inbox.append(Answered(ticket=control.ticket, answers=self.control_answers))
        asyncio.get_running_loop().call_soon(self.client.exchange)

    def _answer(self, message: Generate, prompt: list[int]) -> None:
        result = self.script(message, prompt)
        assert self.client is not None
        match result:
            case Rejected() | EngineLost():
                self._inbox.append(result)
                self.client.exchange()
            case Failure():
                self._publish(failures=[msgspec.structs.replace(result, stream=number_of(message.stream_id))])
            case list():
                self._produce(message, prompt, result)

    def _produce(self, message: Generate, prompt: list[int], tokens: list[int]) -> None:
        number = number_of(message.stream_id)
        made = tokens[: message.sampling.max_tokens]
        is_cut = len(made) < len(tokens)
        finish = self._finish(number, len(prompt), len(made), FinishCode.LENGTH if is_cut else FinishCode.STOP)
        if self.attachment is not None and message.vllm is not None:
            self._publish(attachments=[Attachment(number, self.attachment)])
        if message.pooling:
            vector = array("f", self.embedding_of(message, prompt))
            self._publish(embeddings=[Embedding(number, 0, vector[:2])])
            self._publish(embeddings=[Embedding(number, 2, vector[2:])], finishes=[finish])
            return
        if message.sampling.num_prompt_logprobs != NO_LOGPROBS:
            self._publish(scored=[scored(number, token, place) for place, token in enumerate(prompt) if place])
        if message.sampling.num_logprobs != NO_LOGPROBS:
            self._publish(scored=[scored(number, token) for token in made])
            self._publish(finishes=[finish])
            return
        if not message.is_streaming:
            self._publish(bulks=[(number, made)], finishes=[finish])
            return
        for token in made:
            self._publish(streams=[number], tokens=[token])
        self._publish(finishes=[finish])

    def embedding_of(self, message: Generate, prompt: list[int]) -> list[float]:
        """Three numbers that tell what was asked for."""
        return [float(len(prompt)), float(prompt[0]), -float(message.pooling)]

    def finish(self, stream_id: int, num_output_tokens: int, code: FinishCode) -> None:
        self._publish(finishes=[self._finish(number_of(stream_id), 0, num_output_tokens, code)])

    def _finish(self, number: int, num_prompt: int, num_output: int, code: FinishCode) -> Finish:
        return Finish(number, code, num_prompt, 3, num_output, NO_STOP_TOKEN, 0, 10, 20, 30)

    def _publish(self, **sections: Any) -> None:
        assert self.client is not None
        assert self._ring.try_publish(pack_record(**sections), 1)
        self.client.drain()


def scored(stream: int, token: int, prompt_place: int = 0) -> Scored:
    """By the third likeliest; two are told of."""
    return Scored(stream, token, False, 3, -float(token), [70, 71], [-0.25, -0.5], prompt_place)


class WorkerRig:
    """Everything of one worker but its sockets. `text` is what the engine answers by default."""

    def __init__(
        self,
        folder: Path,
        script: Script | None = None,
        *,
        text: str = "Hello world!",
        server: ServerSettings | None = None,
        engine: EngineSettings | None = None,
        preloaded: Preloaded | None = None,
        tracer: RequestTracer | None = None,
        has_store: bool = True,
        keyring: Keyring | None = None,
        journal: bool = False,
    ) -> None:
        settings = Settings(server=server or ServerSettings(), engine=engine or EngineSettings())
        self.model: ModelFolder = read_model_folder(folder, ModelSettings(served_model_name=("tiny", "alias")))
        self.preloaded = preloaded or preload(self.model)
        view = memoryview(bytearray(ring_segment_bytes(1 << 20)))
        format_ring(view, 1 << 20)
        reader = RingReader(view, 1)
        self.engine = ScriptedEngine(script or (lambda _message, _prompt: self.ids_of(text)), RingWriter(view))
        self.client = EngineClient(
            slot=0,
            generation=1,
            rings=[reader],
            doorbell=Doorbell.create(),
            connect=lambda _in_flight: self.engine,
            block_size=16,
            enable_prefix_caching=True,
            journal=Journal(timeout_s=60.0, max_log_bytes=1 << 20) if journal else None,
        )
        self.engine.client = self.client
        self.page = page = create_metrics_segment("worker").view
        self.fleet = FleetPage(FleetPage.create_segment(1, 1).view)
        self.services = Services(
            settings=settings,
            model=self.model,
            preloaded=self.preloaded,
            client=self.client,
            metrics=WorkerMetrics(page, self.model.name, self.model.max_model_len),
            exposition=Exposition([page]),
            fleet=self.fleet,
            slot=0,
            keyring=keyring or Keyring(settings.server.api_key),
            response_store=_response_store() if has_store else None,
            tracer=tracer,
        )
        self.app = build_app(self.services)

    def ids_of(self, text: str) -> list[int]:
        encoded = self.preloaded.tokenizer.encode([text], add_special_tokens=False)[0]
        return array("I", encoded).tolist()

    def text_of(self, ids: list[int]) -> str:
        return self.preloaded.tokenizer.decode(ids, skip_special_tokens=False)

    def set_ready(self) -> None:
        for cell in (self.fleet.broker, self.fleet.engines[0], self.fleet.workers[0]):
            cell.mark_alive(1)
            cell.state = State.READY
            cell.beat()
        self.fleet.broker.num_peers = 1

    def with_client(self, use: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async def main() -> T:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=20) as client:
                return await use(client)

        return asyncio.run(main())

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.with_client(lambda client: client.request(method, path, **options))

    def post(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        return self.request("POST", path, **({"json": body} if body is not None else {}), **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def chat(self, content: Any = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    def complete(self, prompt: Any = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, **fields})


MakeRig = Callable[..., WorkerRig]


def _response_store() -> ResponseStore:
    """Of a fleet of one worker."""
    view = memoryview(bytearray(shelf_segment_bytes(16, 1 << 20)))
    format_shelf(view, 16, 1 << 20)
    return ResponseStore([Shelf(view)], 0, max_age_s=60.0)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events; checks that it ends as it must."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; checks that it has OpenAI's shape."""
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def http_scope(method: str, path: str, headers: list[tuple[bytes, bytes]] | None = None) -> Scope:
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers or [], "http_version": "1.1", "scheme": "http", "server": ("worker", 80),
    }  # fmt: skip


class Connection:
    """A raw ASGI client that may leave: `leave` makes `receive` report the disconnect."""

    def __init__(self, body: bytes) -> None:
        self._body: list[bytes] = [body]
        self._gone = asyncio.Event()
        self.sent: list[Message] = []
        self.has_sent = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.has_sent.set()
