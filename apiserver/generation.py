"""One generation request, already valid, and its choices: each is the sink of one stream of the engine.

A choice counts its tokens, turns them into text and measures its latencies. What it does with the text is up to the kind:
`CollectedChoice` keeps it for one JSON body, `StreamedChoice` (apiserver.event_stream) writes events.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, structs

from apiserver.answer_details import AnswerDetails
from apiserver.engine_client import EngineClient
from apiserver.errors import ApiError, GenerationFailed, InvalidRequest, Overloaded, QuotaExceeded
from apiserver.metrics import WorkerMetrics
from apiserver.parsed_text import OutputFormat, ParsedText
from apiserver.sink import StreamError
from apiserver.text_stream import TextStream
from ipc.messages import NO_LOGPROBS, Pooling, SamplingParams, StreamId, VllmExtras
from ipc.record import NO_STOP_TOKEN, Embedding, Finish, FinishCode, Scored


class Prompt(Struct, frozen=True):
    """Token ids as they go over the wire: little-endian u32."""

    ids: bytes
    text: str | None = None  # what they were made of, where it is known and asked for

    @property
    def num_tokens(self) -> int:
        return len(self.ids) // 4

    def as_list(self) -> list[int]:
        return array("I", self.ids).tolist()


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """What every route is reduced to."""

    request_id: str
    prompts: tuple[Prompt, ...]
    n: int  # choices per prompt
    sampling: SamplingParams  # max_tokens is set per prompt by `sampling_of`
    max_tokens: tuple[int, ...]  # per prompt
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    told_stop_ids: tuple[int, ...] = ()  # the answer says which of these it ended with; the model's own end goes unsaid
    skip_special_tokens: bool = True
    is_stream: bool = False
    include_usage: bool = False
    include_stages: bool = False  # in the usage
    priority: int = 0
    cache_salt: bytes = b""  # only requests with the same one share K/V
    deadline_s: float | None = None
    pooling: Pooling = Pooling.NONE  # else the answer is a vector per prompt
    output_format: OutputFormat | None = None  # None: the whole text is content
    counts_reasoning: bool = False  # the model may reason: usage says how many tokens it took
    fair_key: int = 0  # which of several API keys it came with, from 1; 0: there is no more than one
    details: AnswerDetails | None = None  # None: the answer is what it is without
    lora: str = ""  # an adapter's name; "": the model as it is
    kv_transfer_params: bytes = b""  # MessagePack; b"": none

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n

    @property
    def has_logprobs(self) -> bool:
        return self.sampling.num_logprobs != NO_LOGPROBS

    @property
    def vllm(self) -> VllmExtras | None:
        if not self.lora and not self.kv_transfer_params:
            return None
        return VllmExtras(lora=self.lora, kv_transfer_params=self.kv_transfer_params)

    def sampling_of(self, prompt: int, choice: int) -> SamplingParams:
        """A seed gives each choice of a prompt its own, as in vLLM."""
        seed = self.sampling.seed
        changes = {
            "max_tokens": self.max_tokens[prompt],
            "seed": None
            if seed is None
            else (seed + choice + _INT63) % (2 * _INT63) - _INT63,  # round its end, in 64 bits
            # One choice of a prompt has them for all, unless each writes its own events.
            "num_prompt_logprobs": self.sampling.num_prompt_logprobs if self.is_stream or not choice else NO_LOGPROBS,
        }
        return structs.replace(self.sampling, **changes)


_INT63 = 1 << 63


class Stages(Struct, frozen=True):
    """Milliseconds that the engine's longest choice took."""

    queue: float
    prefill: float
    decode: float


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int | None = None  # None: the model's answers are not parsed for reasoning
    stages: Stages | None = None


class Choice:
    """One stream on its way to the client. `index` is the choice's place in the response."""

    __slots__ = (
        "_first_token_s", "_last_token_s", "_metrics", "_on_end", "attachment", "engine_finish", "error",
        "finish_reason", "index", "scores", "stop_reason", "stream_id", "submitted_s", "text", "tokens",
        "told_stop_ids",
    )  # fmt: skip

    def __init__(
        self, index: int, text: TextStream, metrics: WorkerMetrics, on_end: Callable[["Choice"], None]
    ) -> None:
        self.index, self.text = index, text
        self.tokens: list[int] | array[int] = []  # not turned into text yet
        self.scores: list[Scored] = []
        self.stream_id: StreamId | None = None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.told_stop_ids: tuple[int, ...] = ()
        self.engine_finish: Finish | None = None
        self.error: StreamError | None = None
        self.attachment: bytes | None = None
        self._metrics, self._on_end = metrics, on_end
        self.submitted_s = time.monotonic()
        self._first_token_s = self._last_token_s = 0.0

    @property
    def has_ended(self) -> bool:
        """The engine will say nothing more. A stop string alone is not the end: the counts come with the finish."""
        return self.engine_finish is not None or self.error is not None

    @property
    def ttft_s(self) -> float | None:
        return self._first_token_s - self.submitted_s if self._first_token_s else None

    @property
    def num_tokens(self) -> int:
        """As usage counts them: a token that stopped the sequence is one of them."""
        if self.engine_finish is not None and self.text.matched_stop is None:
            return self.engine_finish.num_output_tokens
        return self.text.num_tokens

    def take(self, token: int, now_s: float) -> None:
        """One token, to be used at once."""
        self.tokens.append(token)
        self.flush(now_s)

    def flush(self, now_s: float) -> None:
        raise NotImplementedError

    def finish(self, finish: Finish) -> None:
        """The engine's word: everything it will ever say of this stream."""
        self.engine_finish = finish
        if self.finish_reason is None:
            self.finish_reason = _REASONS[FinishCode(finish.code)]
            if finish.code == FinishCode.STOP and self.stop_token_id in self.told_stop_ids:
                self.stop_reason = self.stop_token_id
        self._record(finish)
        self._on_end(self)

    @property
    def stop_token_id(self) -> int | None:
        """The token that ended the sequence; it is not among `tokens`."""
        finish = self.engine_finish
        return None if finish is None or finish.stop_token_id == NO_STOP_TOKEN else finish.stop_token_id

    def fail(self, error: StreamError) -> None:
        self.error = error
        self._metrics.ended("error").inc()
        self._metrics.on_failure(error.reason)
        self._on_end(self)

    def release(self) -> None:
        """Nobody waits for it any more: let go of who did, or each would keep the other until the next collection."""
        del self._on_end

    def note_tokens(self, count: int, now_s: float) -> None:
        """`count` tokens arrived now. One observation, whatever the count: the latencies in between are their mean."""
        last_s, self._last_token_s = self._last_token_s, now_s
        if last_s:
            self._metrics.itl.observe((now_s - last_s) / count, count)
        else:
            self._first_token_s = now_s
            self._metrics.ttft.observe(now_s - self.submitted_s)

    def _note_unseen_tokens(self, finish: Finish) -> None:
        """Latencies of tokens that did not come one by one, from the engine's clock."""
        ttft_s = (finish.queue_us + finish.prefill_us) / 1e6
        self._first_token_s = self.submitted_s + ttft_s
        self._metrics.ttft.observe(ttft_s)
        num_gaps = finish.num_output_tokens - 1
        if num_gaps > 0:
            self._metrics.itl.observe(finish.decode_us / 1e6 / num_gaps, num_gaps)

    def _record(self, finish: Finish) -> None:
        metrics, end_s = self._metrics, time.monotonic()
        if not self._first_token_s and finish.num_output_tokens:
            self._note_unseen_tokens(finish)
        queue_s, prefill_s, decode_s = finish.queue_us / 1e6, finish.prefill_us / 1e6, finish.decode_us / 1e6
        num_tokens = self.num_tokens
        metrics.queue_time.observe(queue_s)
        metrics.prefill_time.observe(prefill_s)
        metrics.decode_time.observe(decode_s)
        metrics.inference_time.observe(prefill_s + decode_s)
        metrics.e2e.observe(end_s - self.submitted_s)
        if num_tokens > 1:
            metrics.time_per_token.observe(decode_s / (num_tokens - 1))
        metrics.request_prompt_tokens.observe(finish.num_prompt_tokens)
        metrics.request_generation_tokens.observe(num_tokens)
        metrics.request_max_generation_tokens.observe(num_tokens)
        metrics.request_computed_tokens.observe(finish.num_prompt_tokens - finish.num_cached_tokens)
        metrics.request_preemptions.observe(finish.num_preemptions)
        metrics.on_prompt(finish.num_prompt_tokens, finish.num_cached_tokens)
        metrics.ended(self.finish_reason or "abort").inc()


class CollectedChoice(Choice):
    """Keeps its text for one body. Without stop strings the engine delivers all tokens at once, with the finish."""

    __slots__ = ("_parts", "_stop", "logprobs")

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        on_end: Callable[[Choice], None],
        stop: Callable[[Choice], None],
    ) -> None:
        super().__init__(index, text, metrics, on_end)
        self._stop = stop
        self._parts: list[str] = []
        self.logprobs: dict[str, Any] | None = None  # Any: JSON, in the form of its route

    @property
    def kept_scores(self) -> list[Scored]:
        """Of the tokens that count: none behind a stop string."""
        return self.scores if self.text.matched_stop is None else self.scores[: self.text.num_tokens]

    @property
    def content(self) -> str:
        return "".join(self._parts)

    def flush(self, now_s: float) -> None:
        tokens, self.tokens = self.tokens, []
        if self.text.has_stop_strings:
            self.note_tokens(len(tokens), now_s)
        if self.text.matched_stop is None:
            self._parts.append(self.text.feed(tokens))
            self._look_for_stop()

    def finish(self, finish: Finish) -> None:
        self.engine_finish = finish
        if self.text.matched_stop is None:
            self._parts.append(self.text.finish(self.stop_token_id))
            self._look_for_stop()
        super().finish(finish)

    def release(self) -> None:
        super().release()
        del self._stop

    def _look_for_stop(self) -> None:
        if self.text.matched_stop is not None:
            self.finish_reason, self.stop_reason = "stop", self.text.matched_stop
            self._stop(self)


class EmbeddedChoice(CollectedChoice):
    """Its answer is a vector; the token that the engine drew on the way counts for nothing."""

    __slots__ = ("embedding",)

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        on_end: Callable[[Choice], None],
        stop: Callable[[Choice], None],
    ) -> None:
        super().__init__(index, text, metrics, on_end, stop)
        self.embedding = array("f")

    @property
    def num_tokens(self) -> int:
        return 0

    def take_embedding(self, piece: Embedding) -> None:
        """In order; one that was lost with its engine comes again from its beginning."""
        del self.embedding[piece.offset :]
        self.embedding.extend(piece.values)


_REASONS = {FinishCode.STOP: "stop", FinishCode.LENGTH: "length", FinishCode.ABORT: "abort"}
"""An abort that this worker did not ask for, with a reason of its own, is an operator's; it is vLLM's word for it."""


def submit(request: GenerationRequest, choices: Sequence[Choice], client: EngineClient, metrics: WorkerMetrics) -> None:
    """Send every choice to the engines; on return each has its stream, or has failed already."""
    metrics.params_n.observe(request.n)
    vllm = request.vllm
    for prompt_index, prompt in enumerate(request.prompts):
        metrics.params_max_tokens.observe(request.max_tokens[prompt_index])
        block_hashes = client.block_hashes(prompt.ids, request.cache_salt)
        for number in range(request.n):
            choice = choices[prompt_index * request.n + number]
            choice.told_stop_ids = request.told_stop_ids
            choice.stream_id = client.submit(
                prompt.ids,
                request.sampling_of(prompt_index, number),
                choice,
                request_id=request.request_id,
                # Stop strings are found here, so the tokens must come as they are made; logprobs come with their tokens.
                is_streaming=request.is_stream or bool(request.stop) or request.has_logprobs,
                block_hashes=block_hashes,
                priority=request.priority,
                deadline_s=request.deadline_s,
                fair_key=request.fair_key,
                pooling=request.pooling,
                vllm=vllm,
            )


def abort(choices: Sequence[Choice], client: EngineClient, metrics: WorkerMetrics) -> int:
    """Give up what has not ended; returns how many that were."""
    open_choices = [choice for choice in choices if not choice.has_ended]
    for choice in open_choices:
        if choice.stream_id is not None:
            client.abort(choice.stream_id)
            metrics.ended("abort").inc()
    return len(open_choices)


def usage_of(request: GenerationRequest, choices: Sequence[Choice]) -> Usage:
    """Prompts count once, however many choices they have; what the cache gave is that of a prompt's first choice."""
    firsts = [choices[prompt * request.n] for prompt in range(len(request.prompts))]
    return Usage(
        prompt_tokens=sum(prompt.num_tokens for prompt in request.prompts),
        completion_tokens=sum(choice.num_tokens for choice in choices),
        cached_tokens=sum(choice.engine_finish.num_cached_tokens for choice in firsts if choice.engine_finish),
        reasoning_tokens=_num_reasoning_tokens(choices) if request.counts_reasoning else None,
        stages=stages_of(choices) if request.include_stages else None,
    )


def stages_of(choices: Sequence[Choice]) -> Stages | None:
    """Those of the choice that took the engine longest; None: no choice came to its end."""
    finishes = [choice.engine_finish for choice in choices if choice.engine_finish is not None]
    if not finishes:
        return None
    slowest = finishes[0] if len(finishes) == 1 else max(finishes, key=_engine_us)
    return Stages(tenths_of_ms(slowest.queue_us), tenths_of_ms(slowest.prefill_us), tenths_of_ms(slowest.decode_us))


def tenths_of_ms(us: int) -> float:
    """Milliseconds with one decimal: `round` goes through text and costs forty times as much."""
    return (us + 50) // 100 / 10


def _engine_us(finish: Finish) -> int:
    return finish.queue_us + finish.prefill_us + finish.decode_us


def _num_reasoning_tokens(choices: Sequence[Choice]) -> int:
    return sum(choice.text.num_reasoning_tokens for choice in choices if isinstance(choice.text, ParsedText))


def api_error(error: StreamError) -> ApiError:
    """What the client is told of a stream that failed."""
    if error.reason == "key_share" and error.retry_after_s is not None:
        return QuotaExceeded(error.message, retry_after_s=error.retry_after_s, reason=error.reason)
    if error.retry_after_s is not None:
        return Overloaded(error.message, retry_after_s=error.retry_after_s, reason=error.reason)
    if error.reason in ("too_long", "grammar"):
        return InvalidRequest(error.message)
    return GenerationFailed(error.message)
