"""A streamed choice whose text is more than content: its events are those of its parts."""

from typing import Protocol, cast

from apiserver.event_stream import ChoiceOf, Events, StreamedChoice, StreamedResponse
from apiserver.metrics import WorkerMetrics
from apiserver.output_parts import Part
from apiserver.parsed_text import ParsedText
from apiserver.text_stream import TextStream
from ipc.record import Scored


class PartEvents(Events, Protocol):
    """Of a route that knows parts."""

    def parts(self, index: int, parts: list[Part], scores: list[Scored]) -> bytes:
        """One event for each part, the first with the scores; where there are scores, at least one."""
        ...


class ParsedChoice(StreamedChoice):
    """Holds tokens back while the parser does; from the end of the reasoning on it is as fast as any other."""

    __slots__ = ("_events", "_num_scored", "_parsed")

    def __init__(
        self, index: int, text: ParsedText, metrics: WorkerMetrics, response: StreamedResponse, events: PartEvents
    ) -> None:
        super().__init__(index, text, metrics, response)
        self._parsed, self._events = text, events
        self._num_scored = 0  # tokens whose scores have gone out

    def flush(self, now_s: float) -> None:
        if self._parsed.ready is not None and not self.scores:
            super().flush(now_s)
            return
        response = self._response
        if not response.can_write:
            response.hold(self)
            return
        tokens, self.tokens = self.tokens, []
        self.note_tokens(len(tokens), now_s)
        parts = self._parsed.feed_parts(tokens)
        if parts:
            response.write(self._events.parts(self.index, parts, self._due_scores()))
        if self.text.has_stop_strings and self.finish_reason is None and self._has_stopped():
            response.stop(self)

    def last_events(self) -> bytes:
        if self.error is not None:
            return super().last_events()
        parts = self._parsed.finish_parts(self.stop_token_id)
        self._has_stopped()
        scores = self.scores if self.text.matched_stop is None else self._due_scores()
        rest = self._events.parts(self.index, parts, scores) if parts or scores else b""
        return rest + self._events.closing(self.index, self._reason(), self.stop_reason)

    def _reason(self) -> str:
        return self._parsed.finish_reason(self.finish_reason or "stop")

    def _due_scores(self) -> list[Scored]:
        """Of the tokens that count since the last event; those behind a stop string never do."""
        due = self.text.num_tokens - self._num_scored
        self._num_scored += due
        scores, self.scores = self.scores[:due], self.scores[due:]
        return scores


def parsed_choice_of(events: Events) -> ChoiceOf:
    """For a response whose texts are ParsedText and whose events know parts."""

    def make(index: int, text: TextStream, metrics: WorkerMetrics, response: StreamedResponse) -> ParsedChoice:
        assert isinstance(text, ParsedText)
        return ParsedChoice(index, text, metrics, response, cast(PartEvents, events))

    return make
