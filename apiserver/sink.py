"""Where one stream's output goes, and why it may end without any more: what apiserver.engine_client tells, and whom.

Errors in words, with the label under which they are counted; `retry_after_s` is set where nothing is lost by asking again.
"""

from array import array
from dataclasses import dataclass
from typing import Protocol

from ipc.messages import Rejected, StreamId
from ipc.record import Embedding, Failure, FailureCode, Finish, Scored


@dataclass(frozen=True)
class StreamError:
    """Why a stream will give nothing more."""

    reason: str  # metric label
    message: str
    retry_after_s: int | None = None  # set when nothing was done, or all of it was lost: it may be sent again


class Sink(Protocol):
    """Where one stream's output goes. Called from the event loop; must not block or raise."""

    tokens: "list[int] | array[int]"
    """Token ids not yet flushed; the client appends, the sink takes."""
    scores: list[Scored]
    """Of a stream that asked for logprobs: one per token, in order, and one for a stop id, before the token is flushed."""
    stream_id: StreamId | None
    """What `submit` returned; the client changes it when the stream goes on in another engine."""
    submitted_s: float
    """CLOCK_MONOTONIC."""
    attachment: bytes | None
    """JSON that the engine gives back beside the output; the client sets it before the finish."""

    def take(self, token: int, now_s: float) -> None:
        """One token, the only one of this wake-up, to be used at once."""
        ...

    def flush(self, now_s: float) -> None:
        """`tokens` has grown: once per wake-up."""
        ...

    def finish(self, finish: Finish) -> None:
        """The engine has ended the stream; its last tokens are in `tokens`."""
        ...

    def fail(self, error: StreamError) -> None:
        """Instead of finish."""
        ...


class EmbeddingSink(Sink, Protocol):
    """Of a stream that was submitted with a pooling."""

    def take_embedding(self, piece: Embedding) -> None:
        """The vector, or a piece of it; before the finish."""
        ...


class PromptSink(Sink, Protocol):
    """Of a stream whose prompt is scored."""

    def take_prompt_score(self, scored: Scored) -> None:
        """In order, before any output; again from the beginning where the prompt had to be computed again."""
        ...


ENGINE_LOST = StreamError("engine_lost", "the engine that served this request was lost", retry_after_s=5)
RING_CORRUPT = StreamError("ring_corrupt", "the token stream was damaged on its way")
ABORTED = StreamError("aborted", "the request was aborted by an operator")
CRASHED = StreamError("crashed", "internal error")


def refusal_of(rejected: Rejected) -> StreamError:
    texts = {
        "no_engine": "no engine is ready to serve requests",
        "max_num_queued_reqs": "too many requests are waiting",
        "max_num_queued_tokens": "too many prompt tokens are waiting",
        "deadline": "the requests before this one would take it past its deadline",
        "key_share": "this key has its share of requests waiting already",
    }
    message = texts.get(rejected.reason, "the request was refused")
    return StreamError(rejected.reason, message, retry_after_s=rejected.retry_after_s)


def failure_of(failure: Failure) -> StreamError:
    reasons = {
        FailureCode.DEADLINE: ("deadline", 1),
        FailureCode.TOO_LONG: ("too_long", None),
        FailureCode.OVERFLOW: ("overflow", 1),
        FailureCode.GRAMMAR: ("grammar", None),
    }
    reason, retry_after_s = reasons.get(FailureCode(failure.code), ("engine_error", None))
    return StreamError(reason, failure.message, retry_after_s)
