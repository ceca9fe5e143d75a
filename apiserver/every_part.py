"""For APIs whose answers are items or blocks: the whole answer comes as parts, also where it is nothing but content."""

from msgspec import structs

from apiserver.output_parts import Content, OutputParser, Part
from apiserver.parsed_text import OutputFormat


class EveryPart:
    """A parser that lets no text pass by itself: apiserver.output_parts.OutputParser."""

    is_plain = False

    def __init__(self, parser: OutputParser | None) -> None:
        self._parser = parser

    @property
    def is_reasoning(self) -> bool:
        return self._parser is not None and self._parser.is_reasoning

    @property
    def is_holding(self) -> bool:
        return self._parser is not None and self._parser.is_holding

    @property
    def num_markers(self) -> int:
        return 0 if self._parser is None else self._parser.num_markers

    def simple_part_or_none(self, piece: str) -> Part | None:
        return Content(piece) if self._parser is None else self._parser.simple_part_or_none(piece)

    def feed(self, piece: str) -> list[Part]:
        return [Content(piece)] if self._parser is None else self._parser.feed(piece)

    def finish(self) -> list[Part]:
        return [] if self._parser is None else self._parser.finish()


def every_part(output_format: OutputFormat | None) -> OutputFormat:
    """A call ends these answers as a call, also one that was asked for by name, which ends a chat with "stop"."""
    if output_format is None:
        return OutputFormat(lambda: EveryPart(None))
    return structs.replace(output_format, parser=lambda: EveryPart(output_format.parser()), ends_with_calls=True)
