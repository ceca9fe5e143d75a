"""Choices whose answer is token ids: one per kind of answer, with text beside the ids where it is asked for.

The token that stopped a sequence is among the ids, as in vLLM; behind a stop string there is none.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, cast

from apiserver.answer_details import AnswerDetails
from apiserver.event_stream import Events, StreamedResponse
from apiserver.gathered_choice import GatheredChoice
from apiserver.generation import Choice, CollectedChoice
from apiserver.metrics import WorkerMetrics
from apiserver.text_stream import TextStream
from ipc.record import Finish, Scored


class UnreadText(TextStream):
    """For an answer that is ids alone: nothing is detokenized."""

    __slots__ = ()

    def feed(self, token_ids: Sequence[int]) -> str:
        self.num_tokens += len(token_ids)
        return ""

    def finish(self, stop_token_id: int | None = None) -> str:
        return ""


class CollectedTokens(CollectedChoice):
    """Keeps its ids for one body."""

    __slots__ = ("token_ids",)

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        on_end: Callable[[Choice], None],
        stop: Callable[[Choice], None],
    ) -> None:
        super().__init__(index, text, metrics, on_end, stop)
        self.token_ids: list[int] = []

    def flush(self, now_s: float) -> None:
        tokens, num_before = self.tokens, self.text.num_tokens
        super().flush(now_s)
        self.token_ids += tokens[: self.text.num_tokens - num_before]

    def finish(self, finish: Finish) -> None:
        super().finish(finish)
        if self.text.matched_stop is None and self.stop_token_id is not None:
            self.token_ids.append(self.stop_token_id)


class TokenEvents(Events, Protocol):
    """Of a route that answers with ids."""

    def tokens(
        self,
        index: int,
        ids: Sequence[int],
        text: str,
        scores: list[Scored],
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
        num_so_far: int | None = None,
    ) -> bytes:
        """`num_so_far`: tokens of the choice, for the usage of this event."""
        ...


class StreamedTokens(GatheredChoice):
    """Writes its ids as events: one for each wake-up, or for as many tokens as are to share one, and a last one with the
    finish."""

    __slots__ = ("_events",)

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        response: StreamedResponse,
        details: AnswerDetails,
    ) -> None:
        super().__init__(index, text, metrics, response, details)
        self._events = cast(TokenEvents, response.events)

    def next_event(self, num_tokens: int) -> bytes:
        return self._event(num_tokens) if self.ids else b""

    def end(self) -> bytes:
        return self._event(self.num_tokens, self.finish_reason or "stop")

    def _event(self, num_tokens: int, finish_reason: str | None = None) -> bytes:
        self.has_begun = True
        ids, words, scores = self.take_gathered()
        num_so_far = num_tokens if self.details.has_running_usage else None
        stop_reason = self.stop_reason if finish_reason is not None else None
        return self._events.tokens(self.index, ids, words, scores, finish_reason, stop_reason, num_so_far)
