"""An answer is cut into its reasoning and its content, as its pieces arrive."""

from apiserver.output_parts import Content, Part, Reasoning
from apiserver.reasoning.style import Phase, ReasoningStyle
from apiserver.stop_strings import held_length


class ReasoningSplitter:
    """apiserver.output_parts.OutputParser. Holds back only what may be part of a marker.

    An answer that ends without an end marker was all reasoning, as in vLLM.
    """

    __slots__ = ("_end", "_ends", "_firsts", "_held", "_phase", "_start", "num_markers")

    def __init__(self, style: ReasoningStyle, phase: Phase, *, interruptions: tuple[str, ...] = ()) -> None:
        """An interruption ends the reasoning, too, and is content: a call that a model makes while it thinks."""
        self._start, self._end = style.start, style.end
        self._ends = (style.end, *interruptions)
        self._firsts = "".join({end[0] for end in self._ends})
        self._phase = phase
        self._held = ""
        self.num_markers = 0

    @property
    def is_reasoning(self) -> bool:
        return self._phase is Phase.THINKING

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    @property
    def is_plain(self) -> bool:
        return self._phase is Phase.ANSWERING

    def simple_part_or_none(self, piece: str) -> Part | None:
        if self._phase is Phase.ANSWERING:
            return Content(piece)
        if self._phase is not Phase.THINKING or self._held:
            return None
        for first in self._firsts:
            if first in piece:
                return None
        return Reasoning(piece)

    def feed(self, piece: str) -> list[Part]:
        text, self._held = self._held + piece, ""
        parts: list[Part] = []
        if self._phase in (Phase.UNDECIDED, Phase.OPENING):
            text = self._begin(text)
        if self._phase is Phase.THINKING:
            text = self._think(text, parts)
        if self._phase is Phase.ANSWERING and text:
            parts.append(Content(text))
        return parts

    def finish(self) -> list[Part]:
        text, self._held = self._held, ""
        if not text:
            return []
        return [Content(text) if self._phase is Phase.UNDECIDED else Reasoning(text)]

    def _begin(self, text: str) -> str:
        """The text behind the start marker, or the whole text once there can be none; "" while that is open."""
        stripped = text.lstrip()
        if stripped.startswith(self._start):
            self._phase = Phase.THINKING
            self.num_markers += 1
            return stripped[len(self._start) :]
        if self._start.startswith(stripped):
            self._held = text
            return ""
        self._phase = Phase.THINKING if self._phase is Phase.OPENING else Phase.ANSWERING
        return text

    def _think(self, text: str, parts: list[Part]) -> str:
        """Takes the reasoning off the text; what is behind the end marker is left."""
        found = [(at, end) for end in self._ends if (at := text.find(end)) >= 0]
        if found:
            at, end = min(found)
            self._phase = Phase.ANSWERING
            self.num_markers += 1
            rest = text[at + len(end) if end == self._end else at :]
        else:
            at, rest = len(text) - held_length(text, self._ends), ""
            self._held = text[at:]
        if at:
            parts.append(Reasoning(text[:at]))
        return rest
