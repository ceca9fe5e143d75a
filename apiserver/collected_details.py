"""A choice of one body that carries details (apiserver.answer_details)."""

from collections.abc import Callable
from typing import Any, Protocol

from apiserver.answer_details import AnswerDetails
from apiserver.event_stream import Events
from apiserver.generation import Choice, GenerationRequest
from apiserver.metrics import WorkerMetrics
from apiserver.text_stream import TextStream
from apiserver.token_choices import CollectedTokens
from ipc.record import Scored


class PromptEvents(Events, Protocol):
    """Of a route that can tell of its prompts."""

    def logprobs(self, scores: list[Scored], first: int | None = None) -> dict[str, Any]: ...
    def prompt_logprobs(self, scores: list[Scored]) -> list[dict[str, Any] | None]: ...


class CollectedDetails(CollectedTokens):
    """For one body, whose fields `describe` fills."""

    __slots__ = ("_echo", "_has_output", "output_ids", "prompt_ids", "prompt_logprobs", "prompt_scores")

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        on_end: Callable[[Choice], None],
        stop: Callable[[Choice], None],
    ) -> None:
        super().__init__(index, text, metrics, on_end, stop)
        self._echo, self._has_output = "", True
        self.prompt_ids: list[int] | None = None
        self.output_ids: list[int] | None = None
        self.prompt_logprobs: list[dict[str, Any] | None] | None = None  # Any: JSON
        self.prompt_scores: list[Scored] = []

    @property
    def content(self) -> str:
        return self._echo + (super().content if self._has_output else "")

    def take_prompt_score(self, scored: Scored) -> None:
        """apiserver.engine_client.PromptSink."""
        put_prompt_score(self.prompt_scores, scored)

    def describe(
        self, request: GenerationRequest, details: AnswerDetails, prompt_scores: list[Scored], events: PromptEvents
    ) -> None:
        """Once all have ended: `prompt_scores` are those that its prompt's first choice was given."""
        prompt = request.prompts[self.index // request.n]
        self._has_output = details.has_output
        if details.has_prompt_ids:
            self.prompt_ids = prompt.as_list()
        if details.has_token_ids:
            self.output_ids = self.token_ids
        if details.has_prompt_logprobs:
            self.prompt_logprobs = events.prompt_logprobs(prompt_scores)
        if details.echoes:
            self._echo = "" if details.has_prompt_ids else prompt.text or ""
        if details.echoes and request.has_logprobs:
            echoed = echoed_scores(request, prompt_scores)
            output = self.kept_scores if details.has_output else []
            self.logprobs = events.logprobs([*echoed, *output], prompt.as_list()[0])


def put_prompt_score(scores: list[Scored], scored: Scored) -> None:
    """Places count from 1. One that comes again comes with all that follow it."""
    del scores[scored.prompt_place - 1 :]
    scores.append(scored)


def echoed_scores(request: GenerationRequest, scores: list[Scored]) -> list[Scored]:
    """With no more alternatives than an output token has: prompt_logprobs may have asked for more."""
    count = request.sampling.num_logprobs
    if count >= request.sampling.num_prompt_logprobs or request.sampling.logprob_token_ids:
        return scores
    return [
        Scored(s.stream, s.token, False, s.rank, s.logprob, s.ids[:count], s.logprobs[:count], s.prompt_place)
        for s in scores
    ]
