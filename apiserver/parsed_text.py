"""The text of one choice, taken apart into reasoning and content as it comes.

Once the parser leaves everything as it stands, tokens take the same fast path as those of a model that has no parser.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from apiserver.detokenizer import Decoder
from apiserver.output_parts import CallArguments, CallStart, Content, OutputParser, Part, Reasoning
from apiserver.text_stream import TextStream
from apiserver.token_table import TokenTable
from ipc.grammar import Grammar
from ipc.messages import Thinking


class OutputFormat(Struct, frozen=True):
    """How the answers to one request are read."""

    parser: Callable[[], OutputParser]  # a new one for each choice
    shown_ids: frozenset[int] = frozenset()  # special tokens that are markers: the parser must see them
    shows_reasoning: bool = True  # else it is parsed, counted and dropped
    ends_with_calls: bool = (
        True  # an answer with calls finishes with "tool_calls"; as in vLLM not where the call was named
    )
    grammar: Grammar | None = None  # what is not reasoning is held to it
    thinking: Thinking | None = None  # what the engine is to know of it


class ParsedText(TextStream):
    """A TextStream that also keeps the parts of what it has given out."""

    __slots__ = (
        "_format",
        "_has_calls",
        "_num_held_tokens",
        "_num_parsed_chars",
        "_parser",
        "_parts",
        "_pieces",
        "num_reasoning_tokens",
    )

    def __init__(
        self,
        format: OutputFormat,
        table: TokenTable | None,
        decoder: Decoder,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._format, self._parser = format, format.parser()
        self._parts: list[Part] = []
        self._has_calls = False
        self._pieces: list[bytes | None] = table.pieces if table is not None else []
        self._num_parsed_chars = 0
        self._num_held_tokens = 0
        self.num_reasoning_tokens = 0
        super().__init__(
            table,
            decoder,
            stop=stop,
            include_stop=include_stop,
            skip_special_tokens=skip_special_tokens,
            shown_ids=format.shown_ids,
            min_tokens=min_tokens,
        )

    def feed(self, token_ids: Sequence[int]) -> str:
        """One by one, so that each is counted where it belongs. A marker's own token is no reasoning."""
        return "".join([self._feed_one(number) for number in token_ids])

    def finish(self, stop_token_id: int | None = None) -> str:
        num_before = self._num_parsed_chars
        text = super().finish(stop_token_id)
        num_parsed = self._num_parsed_chars - num_before  # of the stop token, which came through `feed`
        self._keep(self._parser.feed(text[num_parsed:]))
        self._keep(self._parser.finish())
        self.num_reasoning_tokens += self._num_held_tokens
        return text

    def feed_parts(self, token_ids: Sequence[int]) -> list[Part]:
        """The parts these tokens complete."""
        part = self._simple_part_or_none(token_ids)
        if part is not None:
            return [part]
        self.feed(token_ids)
        parts = self.take_parts()
        self._look_whether_ready()
        return parts

    def finish_parts(self, stop_token_id: int | None) -> list[Part]:
        self.finish(stop_token_id)
        return self.take_parts()

    def finish_reason(self, reason: str) -> str:
        """The engine's word, or that it stopped in order to call."""
        return "tool_calls" if self._has_calls and reason == "stop" and self._format.ends_with_calls else reason

    def take_parts(self) -> list[Part]:
        """What has come since they were last taken."""
        parts, self._parts = self._parts, []
        return parts

    def _simple_part_or_none(self, token_ids: Sequence[int]) -> Part | None:
        """Of whole tokens in which nothing begins or ends: nearly all of them, at a fraction of the cost."""
        whole = self._escaped
        if whole is None or self._parts or not self._detokenizer.is_clean or not self._format.shows_reasoning:
            return None
        for number in token_ids:
            if whole[number] is None:
                return None
        pieces = self._pieces
        text = b"".join([pieces[number] for number in token_ids]).decode()  # type: ignore[misc]  # no None among them
        part = self._parser.simple_part_or_none(text) if text else None
        if part is not None:
            self.num_tokens += len(token_ids)
            if isinstance(part, Reasoning):
                self.num_reasoning_tokens += len(token_ids)
        return part

    def _feed_one(self, token: int) -> str:
        parser = self._parser
        num_tokens, num_markers = self.num_tokens, parser.num_markers
        text = super().feed((token,))
        if text:
            self._num_parsed_chars += len(text)
            self._keep(parser.feed(text))
        self._count_reasoning(self.num_tokens - num_tokens, parser.num_markers != num_markers)
        return text

    def _count_reasoning(self, num_tokens: int, was_marker: bool) -> None:
        """Tokens that may yet be a marker's count once they are not."""
        if was_marker or not self._parser.is_reasoning:
            self._num_held_tokens = 0
            return
        self._num_held_tokens += num_tokens
        if not self._parser.is_holding:
            self.num_reasoning_tokens += self._num_held_tokens
            self._num_held_tokens = 0

    def _keep(self, parts: list[Part]) -> None:
        """Neighbours of one kind become one part."""
        for part in parts:
            if isinstance(part, CallStart):
                self._has_calls = True
            elif isinstance(part, Reasoning) and not self._format.shows_reasoning:
                continue
            joined = _joined(self._parts[-1], part) if self._parts else None
            if joined is None:
                self._parts.append(part)
            else:
                self._parts[-1] = joined

    def _look_whether_ready(self) -> None:
        super()._look_whether_ready()
        if not self._parser.is_plain or self._parts:
            self.ready = None


def _joined(left: Part, right: Part) -> Part | None:
    match left, right:
        case Content(text=before), Content(text=behind):
            return Content(before + behind)
        case Reasoning(text=before), Reasoning(text=behind):
            return Reasoning(before + behind)
        case CallArguments(index=index, text=before), CallArguments(index=number, text=behind) if index == number:
            return CallArguments(index, before + behind)
    return None
