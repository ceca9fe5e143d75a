"""A choice of one body that carries details (apiserver.answer_details)."""

from collections.abc import Callable

from apiserver.answer_details import AnswerDetails
from apiserver.generation import Choice, GenerationRequest
from apiserver.metrics import WorkerMetrics
from apiserver.text_stream import TextStream
from apiserver.token_choices import CollectedTokens


class CollectedDetails(CollectedTokens):
    """For one body, whose fields `describe` fills."""

    __slots__ = ("output_ids", "prompt_ids")

    def __init__(
        self,
        index: int,
        text: TextStream,
        metrics: WorkerMetrics,
        on_end: Callable[[Choice], None],
        stop: Callable[[Choice], None],
    ) -> None:
        super().__init__(index, text, metrics, on_end, stop)
        self.prompt_ids: list[int] | None = None
        self.output_ids: list[int] | None = None

    def describe(self, request: GenerationRequest, details: AnswerDetails) -> None:
        """Once it has ended."""
        if details.has_prompt_ids:
            self.prompt_ids = request.prompts[self.index // request.n].as_list()
        if details.has_token_ids:
            self.output_ids = self.token_ids
