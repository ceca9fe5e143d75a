"""A streamed choice each of whose events has a number: none of them is ready-made."""

from apiserver.event_stream import StreamedChoice, StreamedResponse
from apiserver.metrics import WorkerMetrics
from apiserver.responses.events import ResponseEvents
from apiserver.text_stream import TextStream
from ipc.record import Scored


class NumberedChoice(StreamedChoice):
    __slots__ = ("_numbered",)

    def __init__(
        self, index: int, text: TextStream, metrics: WorkerMetrics, response: StreamedResponse, events: ResponseEvents
    ) -> None:
        super().__init__(index, text, metrics, response)
        self._numbered = events

    def choose_way(self) -> None:
        """Always the exact one."""

    def flush(self, now_s: float) -> None:
        response = self._response
        if not response.can_write:
            response.hold(self)
            return
        tokens, self.tokens = self.tokens, []
        self.note_tokens(len(tokens), now_s)
        num_before = self.text.num_tokens
        piece = self.text.feed(tokens)
        scores = self._take_scores(self.text.num_tokens - num_before)
        if piece or scores:
            response.write(self._numbered.text(piece, scores))
        if self.text.has_stop_strings and self.finish_reason is None and self._has_stopped():
            response.stop(self)

    def last_events(self) -> bytes:
        events = self._numbered
        if self.error is not None:
            return super().last_events()
        rest = self.text.finish(self.stop_token_id)
        self._has_stopped()
        scores = self._take_scores(len(self.scores)) if self.text.matched_stop is None else []
        text = events.text(rest, scores) if rest or scores else b""
        return text + events.closing(self.index, self.finish_reason or "stop", self.stop_reason)

    def _take_scores(self, count: int) -> list[Scored]:
        scores, self.scores = self.scores[:count], self.scores[count:]
        return scores
