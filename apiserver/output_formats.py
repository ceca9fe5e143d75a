"""What one worker knows of its model's answers: which parser a request gets, if any."""

from collections.abc import Iterable

from apiserver.chat_messages import template_variables
from apiserver.parsed_text import OutputFormat
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.reasoning.style import Phase, ReasoningStyle, style_or_none
from apiserver.schema.requests import ChatRequest
from apiserver.services import Services


class OutputFormats:
    """Built once per route. A request whose whole answer is content gets none, and takes the fast path."""

    def __init__(self, services: Services) -> None:
        self._tokenizer, self._table = services.preloaded.tokenizer.decoder, services.preloaded.token_table
        self._reasoning = style_or_none(services.settings.server, services.model.chat_template)

    @property
    def has_reasoning(self) -> bool:
        """Whether the model's answers are looked at for reasoning."""
        return self._reasoning is not None

    def format_or_none(self, request: ChatRequest, prompt: str) -> OutputFormat | None:
        """`prompt` is the rendered chat."""
        style = self._reasoning
        if style is None:
            return None
        phase = _phase(style, request, prompt)
        if phase is Phase.ANSWERING:
            return None
        return OutputFormat(
            lambda: ReasoningSplitter(style, phase),
            shown_ids=self._special_ids((style.start, style.end)),
            shows_reasoning=request.include_reasoning is not False,
        )

    def _special_ids(self, markers: Iterable[str]) -> frozenset[int]:
        """Of the markers that are special tokens: detokenizing would drop them."""
        ids = {self._tokenizer.token_to_id(marker) for marker in markers}
        if self._table is None:
            return frozenset(number for number in ids if number is not None)
        return self._table.special_ids & ids


def _phase(style: ReasoningStyle, request: ChatRequest, prompt: str) -> Phase:
    """vLLM's switches are `enable_thinking` and `thinking` among the template's variables."""
    if request.continue_final_message:
        content = request.messages[-1].content
        return style.phase_within(content if isinstance(content, str) else prompt)
    phase, variables = style.phase_after(prompt), template_variables(request)
    is_off = variables.get("enable_thinking") is False or variables.get("thinking") is False
    return Phase.ANSWERING if is_off and phase is not Phase.THINKING else phase
