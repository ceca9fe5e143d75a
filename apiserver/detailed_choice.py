"""Choices of chats and completions that carry details (apiserver.answer_details): token ids, running usage, fewer events.

An event is that of a choice without details, with the details put in behind its choice and behind its choices.
"""

from functools import partial
from typing import Any, cast

import msgspec

from apiserver.answer_details import AnswerDetails
from apiserver.collected_details import echoed_scores, put_prompt_score
from apiserver.event_stream import ChoiceOf, StreamedResponse
from apiserver.gathered_choice import GatheredChoice
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


class DetailedChoice(GatheredChoice):
    """Writes its text as events with details. Where the text has parts, so have the events."""

    __slots__ = ("_events", "_opens_with_prompt_ids", "_prompt_scores", "_request")

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
        super().__init__(index, text, metrics, response, details)
        self._opens_with_prompt_ids = opens_with_prompt_ids
        self._events = cast(PartEvents, response.events)  # where the text has parts
        self._request = request
        self._prompt_scores: list[Scored] = []

    def take_prompt_score(self, scored: Scored) -> None:
        """apiserver.engine_client.PromptSink."""
        put_prompt_score(self._prompt_scores, scored)

    def next_event(self, num_tokens: int) -> bytes:
        """Ids without text need an event too."""
        return self._event(num_tokens, tells_ids_alone=self.details.has_token_ids)

    def end(self) -> bytes:
        """Ids without text come with the finish."""
        rest = self._event(self.num_tokens, tells_ids_alone=False)
        reason = self.finish_reason or "stop"
        if isinstance(self.text, ParsedText):
            reason = self.text.finish_reason(reason)
        closing = self._response.events.closing(self.index, reason, self.stop_reason)
        ids, self.ids = self.ids, []
        return rest + self._detailed(closing, ids, self.num_tokens)

    def _event(self, num_tokens: int, *, tells_ids_alone: bool) -> bytes:
        """With what was gathered; empty where that is nothing to tell of, and then its ids wait."""
        gathered, words, scores = self.take_gathered()
        escaped = escape(words)
        if not self.details.has_output:
            escaped, scores = b"", []
        if self.details.echoes and not self.has_begun:
            return self._echo(escaped, gathered, scores, num_tokens)
        parts = self.text.take_parts() if isinstance(self.text, ParsedText) else None
        if not (parts or scores or (escaped and parts is None) or (gathered and tells_ids_alone)):
            self.ids = gathered
            return b""
        if parts is not None:
            event = self._events.parts(self.index, parts, scores)
        elif scores:
            event = self._events.scored(self.index, escaped, scores)
        else:
            event = self._prefix + escaped + self._suffix
        return self._detailed(event, gathered, num_tokens)

    def _echo(self, words: bytes, ids: list[int], scores: list[Scored], num_tokens: int) -> bytes:
        """The first event, of a completion: the prompt stands before its words."""
        words = escape("" if self.details.has_prompt_ids else self._prompt.text or "") + words
        event = self._prefix + words + self._suffix
        if self._request.has_logprobs:
            echoed = echoed_scores(self._request, self._prompt_scores)
            first = self._prompt.as_list()[0]
            event = cast(CompletionEvents, self._events).scored(self.index, words, [*echoed, *scores], first)
        return self._detailed(event, ids, num_tokens)

    def _detailed(self, data: bytes, ids: list[int], num_tokens: int) -> bytes:
        """These events, the ids in the last one."""
        details = self.details
        *others, last, _ = data.split(b"\n\n")
        behind_choice = b',"token_ids":%b' % _encode(ids) if details.has_token_ids else b""
        if not self.has_begun and self._opens_with_prompt_ids:
            behind_choice += b',"prompt_token_ids":%b' % _encode(self._prompt.as_list())
        behind_choices = b""
        if details.has_running_usage:
            behind_choices = b',"usage":%b' % _encode(self._usage(num_tokens))
        self.has_begun = True
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
    return partial(DetailedChoice, request=request, details=details, opens_with_prompt_ids=opens_with_prompt_ids)
