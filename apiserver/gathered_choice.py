"""A streamed choice whose tokens are gathered until they make an event: with their ids, or several to one event."""

from abc import abstractmethod

from apiserver.answer_details import AnswerDetails
from apiserver.event_stream import StreamedChoice, StreamedResponse
from apiserver.metrics import WorkerMetrics
from apiserver.text_stream import TextStream
from ipc.record import Scored


class GatheredChoice(StreamedChoice):
    """The token that stopped a sequence is among the ids, as in vLLM; behind a stop string there is none."""

    __slots__ = ("_words", "details", "has_begun", "ids")

    def __init__(
        self, index: int, text: TextStream, metrics: WorkerMetrics, response: StreamedResponse, details: AnswerDetails
    ) -> None:
        super().__init__(index, text, metrics, response)
        self.details = details
        self.has_begun = False  # an event is written
        self.ids: list[int] = []  # of the tokens that count: for the next event, as are the words
        self._words: list[str] = []

    @abstractmethod
    def next_event(self, num_tokens: int) -> bytes:
        """With what was gathered, of a choice of so many tokens; empty where that is nothing to tell of."""

    @abstractmethod
    def end(self) -> bytes:
        """What is left, and the finish."""

    def take_gathered(self) -> tuple[list[int], str, list[Scored]]:
        """Ids, words and the ids' scores."""
        scores, self.scores = self.scores[: len(self.ids)], self.scores[len(self.ids) :]
        ids, self.ids = self.ids, []
        words, self._words = self._words, []
        return ids, "".join(words), scores

    def choose_way(self) -> None:
        """There is one."""

    def flush(self, now_s: float) -> None:
        response = self._response
        if not response.can_write:
            response.hold(self)
            return
        tokens, self.tokens = self.tokens, []
        self.note_tokens(len(tokens), now_s)
        num_before = self.text.num_tokens
        self._words.append(self.text.feed(tokens))
        self.ids += tokens[: self.text.num_tokens - num_before]
        is_due = not self.has_begun or len(self.ids) >= self.details.stream_interval
        if is_due and (event := self.next_event(self.text.num_tokens)):
            response.write(event)
        if self.text.has_stop_strings and self.finish_reason is None and self._has_stopped():
            response.stop(self)

    def last_events(self) -> bytes:
        if self.error is not None:
            return super().last_events()
        self._words.append(self.text.finish(self.stop_token_id))
        is_cut = self._has_stopped()
        if self.stop_token_id is not None and not is_cut:
            self.ids.append(self.stop_token_id)
        return self.end()
