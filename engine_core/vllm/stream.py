"""One request inside vLLM: whose it is, what it has given, and when."""

from array import array

from engine_core.vllm.wire import EventType, Output
from ipc.messages import NO_LOGPROBS, Generate, number_of, slot_of
from ipc.record import NO_STOP_TOKEN, Finish, FinishCode


class Stream:
    __slots__ = (
        "_first_token_s",
        "_num_cached",
        "_num_preemptions",
        "_num_prompt",
        "_queued_s",
        "_scheduled_s",
        "client_request_id",
        "deadline_s",
        "has_logprobs",
        "has_prompt_logprobs",
        "is_plain",
        "is_scheduled",
        "is_streaming",
        "num_output",
        "number",
        "output_ids",
        "priority",
        "request_id",
        "slot",
        "stream_id",
    )  # fmt: skip

    def __init__(
        self, request_id: str, stream_id: int, request: Generate, num_prompt_tokens: int, num_delivered: int
    ) -> None:
        self.request_id, self.stream_id = request_id, stream_id
        self.client_request_id = request.request_id
        self.slot, self.number = slot_of(stream_id), number_of(stream_id)
        self.is_streaming = request.is_streaming
        self.has_logprobs = request.sampling.num_logprobs != NO_LOGPROBS
        self.has_prompt_logprobs = request.sampling.num_prompt_logprobs != NO_LOGPROBS and not num_delivered
        self.deadline_s = request.deadline_s if num_delivered == 0 else None  # CLOCK_MONOTONIC, until the first token
        self.priority = request.priority
        self.is_scheduled = False
        self.is_plain = False  # it has started, and what comes is tokens alone
        self.num_output = num_delivered
        self.output_ids = array("i")  # of one that does not stream
        self._num_prompt, self._num_cached, self._num_preemptions = num_prompt_tokens, 0, 0
        self._queued_s = self._scheduled_s = self._first_token_s = 0.0  # by the engine's clock; 0: not yet

    @property
    def has_started(self) -> bool:
        return self._first_token_s > 0.0

    @property
    def num_computed(self) -> int:
        """Of the prompt."""
        return self._num_prompt - self._num_cached

    @property
    def num_preemptions(self) -> int:
        return self._num_preemptions

    def be_scheduled(self) -> None:
        """vLLM works at its prompt, or has: too late for its deadline."""
        self.is_scheduled, self.deadline_s = True, None

    def note(self, output: Output, timestamp_s: float) -> None:
        """What an output tells beside its tokens. `timestamp_s` is when its step ended, by the engine's clock."""
        if output.new_token_ids and not self._first_token_s:
            self._first_token_s = timestamp_s
            self.be_scheduled()
            self.is_plain = not self.has_logprobs
        if output.prefill_stats is not None:
            num_cached = output.prefill_stats.num_cached_tokens
            self._num_cached = min(num_cached, self._num_prompt)  # of one that is resumed some may be output
        for event in output.events or ():
            if event.type == EventType.QUEUED:
                self._queued_s = event.timestamp
            elif event.type == EventType.SCHEDULED and not self._scheduled_s:
                self._scheduled_s = event.timestamp
            elif event.type == EventType.PREEMPTED:
                self._num_preemptions += 1

    def finish(self, code: FinishCode, stop_token_id: int = NO_STOP_TOKEN, *, ended_s: float) -> Finish:
        """`ended_s` by the engine's clock."""
        first_token_s = self._first_token_s or ended_s
        scheduled_s = self._scheduled_s or first_token_s
        queued_s = self._queued_s or scheduled_s
        return Finish(
            stream=self.number,
            code=code,
            num_prompt_tokens=self._num_prompt,
            num_cached_tokens=self._num_cached,
            num_output_tokens=self.num_output,
            stop_token_id=stop_token_id,
            num_preemptions=self._num_preemptions,
            queue_us=_us(scheduled_s - queued_s),
            prefill_us=_us(first_token_s - scheduled_s),
            decode_us=_us(ended_s - first_token_s),
        )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
