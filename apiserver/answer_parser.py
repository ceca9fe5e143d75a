"""An answer that may hold both: reasoning first, and behind it content and calls."""

from apiserver.output_parts import CallArguments, CallStart, Content, Part
from apiserver.reasoning.splitter import ReasoningSplitter
from apiserver.tools.call_parser import CallParser


class AnswerParser:
    """apiserver.output_parts.OutputParser."""

    __slots__ = ("_calls", "_max_calls", "_reasoning")

    def __init__(self, reasoning: ReasoningSplitter | None, calls: CallParser, *, max_calls: int | None = None) -> None:
        """Calls beyond `max_calls` are dropped, as vLLM does it for a request without parallel calls."""
        self._reasoning, self._calls, self._max_calls = reasoning, calls, max_calls

    @property
    def is_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_reasoning

    @property
    def is_holding(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_holding

    @property
    def is_plain(self) -> bool:
        return (self._reasoning is None or self._reasoning.is_plain) and self._calls.is_plain

    @property
    def num_markers(self) -> int:
        return self._reasoning.num_markers if self._reasoning is not None else 0

    def simple_part_or_none(self, piece: str) -> Part | None:
        part = Content(piece) if self._reasoning is None else self._reasoning.simple_part_or_none(piece)
        return self._calls.simple_part_or_none(piece) if isinstance(part, Content) else part

    def feed(self, piece: str) -> list[Part]:
        return self._with_calls([Content(piece)] if self._reasoning is None else self._reasoning.feed(piece))

    def finish(self) -> list[Part]:
        parts = [] if self._reasoning is None else self._with_calls(self._reasoning.finish())
        return parts + self._allowed(self._calls.finish())

    def _with_calls(self, parts: list[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if isinstance(part, Content):
                found += self._allowed(self._calls.feed(part.text))
            else:
                found.append(part)
        return found

    def _allowed(self, parts: list[Part]) -> list[Part]:
        most = self._max_calls
        if most is None:
            return parts
        return [part for part in parts if not isinstance(part, CallStart | CallArguments) or part.index < most]
