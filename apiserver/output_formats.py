"""What one worker knows of its model's answers: which parser a request gets, if any."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from apiserver.answer_parser import AnswerParser
from apiserver.chat_messages import template_variables
from apiserver.errors import InvalidRequest
from apiserver.parsed_text import OutputFormat
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.reasoning.style import Phase, ReasoningStyle, style_or_none
from apiserver.schema.requests import ChatRequest
from apiserver.services import Services
from apiserver.tools.call_parser import CallParser, JsonListParser, NamedCallParser
from apiserver.tools.forms import form_or_none
from apiserver.tools.tool_use import Choice, ToolUse, tool_use_or_none
from ipc.messages import NO_LIMIT, Thinking

MAX_THINKING_TOKENS = 2**31 - 1


class OutputFormats:
    """Built once. A request whose whole answer is content gets none, and takes the fast path."""

    def __init__(self, services: Services) -> None:
        settings, template = services.settings.server, services.model.chat_template
        self._tokenizer, self._table = services.preloaded.tokenizer, services.preloaded.token_table
        self._reasoning = style_or_none(settings, template)
        style = self._reasoning
        markers = () if style is None else (style.start, style.end)
        self._ids_of = {
            marker: tuple(array("I", self._tokenizer.encode([marker], add_special_tokens=False)[0]))
            for marker in markers
        }
        self._calls = form_or_none(settings, template) if settings.enable_auto_tool_choice else None

    @property
    def has_reasoning(self) -> bool:
        """Whether the model's answers are looked at for reasoning."""
        return self._reasoning is not None

    def format_or_none(self, request: ChatRequest, prompt: str) -> OutputFormat | None:
        """`prompt` is the rendered chat. Raises InvalidRequest where the tools cannot be used as asked."""
        use = tool_use_or_none(request)
        style = self._reasoning
        phase = Phase.ANSWERING if style is None else _phase(style, request, prompt)
        thinking = self._thinking_or_none(request.thinking_token_budget, phase)
        if use is not None:
            return self._format_with_calls(request, use, style, phase, thinking)
        if style is None or phase is Phase.ANSWERING:
            return None
        return OutputFormat(
            lambda: ReasoningSplitter(style, phase),
            shown_ids=self._special_ids((style.start, style.end)),
            shows_reasoning=request.include_reasoning is not False,
            thinking=thinking,
        )

    def _format_with_calls(
        self,
        request: ChatRequest,
        use: ToolUse,
        style: ReasoningStyle | None,
        phase: Phase,
        thinking: Thinking | None,
    ) -> OutputFormat:
        make = self._call_parser(use)
        first = make()
        max_calls = None if use.is_parallel else 1
        tokens = first.known_tokens
        splitter: Callable[[], ReasoningSplitter] | None = None
        if style is not None and phase is not Phase.ANSWERING:
            tokens = (*tokens, style.start, style.end)
            splitter = partial(ReasoningSplitter, style, phase, interruptions=first.markers[:1])
        return OutputFormat(
            lambda: AnswerParser(splitter and splitter(), make(), max_calls=max_calls),
            shown_ids=self._special_ids(tokens),
            shows_reasoning=request.include_reasoning is not False,
            ends_with_calls=use.choice is not Choice.NAMED,
            grammar=use.grammar_or_none(),
            thinking=thinking,
        )

    def _call_parser(self, use: ToolUse) -> Callable[[], CallParser]:
        """Calls that are enforced look the same for every model; those that are left to the model, as it learned them."""
        if use.choice is Choice.NAMED:
            return partial(NamedCallParser, use.name)
        if use.choice is Choice.REQUIRED:
            return partial(JsonListParser, use.schemas)
        if self._calls is None:
            raise InvalidRequest(
                "tools: nothing is known of how this model writes calls, serve it with --tool-call-parser and without "
                "--no-enable-auto-tool-choice, or say what to call by tool_choice",
                param="tools",
            )
        return partial(self._calls, use.schemas)

    def has_ended_reasoning(self, request: ChatRequest, prompt: str) -> bool | None:
        """Whether the answer to a rendered chat begins behind the reasoning. None: that is up to the model."""
        phase = None if self._reasoning is None else _phase(self._reasoning, request, prompt)
        return None if phase in (None, Phase.UNDECIDED) else phase is Phase.ANSWERING

    def thinking_after(self, prompt: str, max_tokens: int | None, variables: Mapping[str, Any]) -> Thinking | None:
        """Of an answer to a prompt that is known by its tokens; `variables` are those its template was given. Raises
        InvalidRequest."""
        phase = Phase.ANSWERING if self._reasoning is None else _phase_after(self._reasoning, prompt, variables)
        return self._thinking_or_none(max_tokens, phase)

    def _thinking_or_none(self, budget: int | None, phase: Phase) -> Thinking | None:
        """Where the model reasons, and for how long; None where it does not. As in vLLM a budget of -1 is none, and a model
        whose reasoning nobody knows cannot have one."""
        style = self._reasoning
        max_tokens = NO_LIMIT if budget is None else budget
        if not NO_LIMIT <= max_tokens <= MAX_THINKING_TOKENS:
            raise InvalidRequest(
                f"thinking_token_budget must be between -1 and {MAX_THINKING_TOKENS}, not {max_tokens}",
                param="thinking_token_budget",
            )
        if style is None and max_tokens != NO_LIMIT:
            raise InvalidRequest(
                "thinking_token_budget: nothing is known of how this model reasons, serve it with --reasoning-parser",
                param="thinking_token_budget",
            )
        if style is None or phase is Phase.ANSWERING:
            return None
        return Thinking(
            max_tokens=max_tokens,
            start_ids=self._ids_of[style.start],
            end_ids=self._ids_of[style.end],
            waits_for_start=phase is Phase.UNDECIDED,
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
    return _phase_after(style, prompt, template_variables(request))


def _phase_after(style: ReasoningStyle, prompt: str, variables: Mapping[str, Any]) -> Phase:
    phase = style.phase_after(prompt)
    is_off = variables.get("enable_thinking") is False or variables.get("thinking") is False
    return Phase.ANSWERING if is_off and phase is not Phase.THINKING else phase
