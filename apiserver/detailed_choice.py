"""Choices of chats and completions that carry details (apiserver.answer_details): token ids, running usage, fewer events.

An event is that of a choice without details, with the details put in behind its choice and behind its choices. The token
that stopped a sequence is among the ids, as in vLLM; behind a stop string there is none.
"""

from functools import partial
from typing import Any, cast

import msgspec

from apiserver.answer_details import AnswerDetails
from apiserver.collected_details import echoed_scores, put_prompt_score
from apiserver.event_stream import ChoiceOf, StreamedChoice, StreamedResponse
from apiserver.generation import GenerationRequest, Prompt
from apiserver.metrics import WorkerMetrics
from apiserver.parsed_choice import PartEvents
from apiserver.parsed_text import ParsedText
from apiserver.schema.responses import CompletionEvents, running_usage
from apiserver.text_stream import TextStream
from apiserver.token_table import escape
from ipc.record import Scored

_encode = msgspec.json.encode
_NUM_CLOSED = 3  # brackets at the end of every event: its choice, its choices, itself


class DetailedChoice(StreamedChoice):
    """Writes its text as events with details. Where the text has parts, so have the events."""

    __slots__ = (
        "_details",
        "_events",
        "_has_begun",
        "_ids",
        "_opens_with_prompt_ids",
        "_prompt_scores",
        "_request",
        "_words",
    )

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        response: StreamedResponse,
        request: GenerationRequest,
        details: AnswerDetails,
        opens_with_prompt_ids: bool,
    ) -> None:
        super().__init__(index, text, metrics, response)
        self._opens_with_prompt_ids = opens_with_prompt_ids
        self._events = cast(PartEvents, response.events)  # where the text has parts
        self._request, self._details = request, details
        self._has_begun = False  # an event is written
        self._prompt_scores: list[Scored] = []
        self._words: list[str] = []  # of a text without parts, and the ids of the tokens that count: for the next event
        self._ids: list[int] = []

    def take_prompt_score(self, scored: Scored) -> None:
        """apiserver.engine_client.PromptSink."""
        put_prompt_score(self._prompt_scores, scored)

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
        self._ids += tokens[: self.text.num_tokens - num_before]
        if not self._has_begun or len(self._ids) >= self._details.stream_interval:
            response.write(self._next_event(self.text.num_tokens))
        if self.text.has_stop_strings and self.finish_reason is None and self._has_stopped():
            response.stop(self)

    def last_events(self) -> bytes:
        if self.error is not None:
            return super().last_events()
        self._words.append(self.text.finish(self.stop_token_id))
        is_cut = self._has_stopped()
        if self.stop_token_id is not None and not is_cut:
            self._ids.append(self.stop_token_id)
        rest = self._next_event(self.num_tokens, is_last=True)
        reason = self.finish_reason or "stop"
        if isinstance(self.text, ParsedText):
            reason = self.text.finish_reason(reason)
        closing = self._response.events.closing(self.index, reason, self.stop_reason)
        ids, self._ids = self._ids, []
        return rest + self._detailed(closing, ids, self.num_tokens)

    def _next_event(self, num_tokens: int, *, is_last: bool = False) -> bytes:
        """With what has come since the last one. Ids without text need an event too, unless the finish is to come."""
        scores, self.scores = self.scores[: len(self._ids)], self.scores[len(self._ids) :]
        words, self._words = escape("".join(self._words)), []
        if not self._details.has_output:
            words, scores = b"", []
        if self._details.echoes and not self._has_begun:
            return self._echo(words, scores, num_tokens)
        is_parsed = isinstance(self.text, ParsedText)
        parts = self.text.take_parts() if isinstance(self.text, ParsedText) else []
        has_more_than_ids = bool(scores or (parts if is_parsed else words))
        if not has_more_than_ids and (is_last or not self._ids or not self._details.has_token_ids):
            return b""
        if is_parsed:
            event = self._events.parts(self.index, parts, scores)
        elif scores:
            event = self._events.scored(self.index, words, scores)
        else:
            event = self._prefix + words + self._suffix
        ids, self._ids = self._ids, []
        return self._detailed(event, ids, num_tokens)

    def _echo(self, words: bytes, scores: list[Scored], num_tokens: int) -> bytes:
        """The first event, of a completion: the prompt stands before its words."""
        words = escape("" if self._details.has_prompt_ids else self._prompt.text or "") + words
        event = self._prefix + words + self._suffix
        if self._request.has_logprobs:
            echoed = echoed_scores(self._request, self._prompt_scores)
            first = self._prompt.as_list()[0]
            event = cast(CompletionEvents, self._events).scored(self.index, words, [*echoed, *scores], first)
        ids, self._ids = self._ids, []
        return self._detailed(event, ids, num_tokens)

    def _detailed(self, data: bytes, ids: list[int], num_tokens: int) -> bytes:
        """These events, the ids in the last one."""
        details = self._details
        *others, last, _ = data.split(b"\n\n")
        behind_choice = b',"token_ids":%b' % _encode(ids) if details.has_token_ids else b""
        if not self._has_begun and self._opens_with_prompt_ids:
            behind_choice += b',"prompt_token_ids":%b' % _encode(self._prompt.as_list())
        behind_choices = b""
        if details.has_running_usage:
            behind_choices = b',"usage":%b' % _encode(self._usage(num_tokens))
        self._has_begun = True
        events = [_with(event, b"", behind_choices) for event in others]
        return b"".join([*events, _with(last, behind_choice, behind_choices)])

    @property
    def _prompt(self) -> Prompt:
        return self._request.prompts[self.index // self._request.n]

    def _usage(self, num_tokens: int) -> dict[str, Any]:
        num_reasoning = self.text.num_reasoning_tokens if isinstance(self.text, ParsedText) else 0
        counts_reasoning = self._request.counts_reasoning
        return running_usage(self._prompt.num_tokens, num_tokens, num_reasoning if counts_reasoning else None)


def _with(event: bytes, behind_choice: bytes, behind_choices: bytes) -> bytes:
    return b"%b%b}]%b}\n\n" % (event[:-_NUM_CLOSED], behind_choice, behind_choices)


def detailed_choice_of(request: GenerationRequest, details: AnswerDetails, *, opens_with_prompt_ids: bool) -> ChoiceOf:
    """`opens_with_prompt_ids`: in the first event, where no other has them."""
    return partial(
        DetailedChoice, request=request, details=details, opens_with_prompt_ids=opens_with_prompt_ids
    )  # fmt: skip
