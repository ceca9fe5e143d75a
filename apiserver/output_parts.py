"""What the text of a model's answer is made of, in the order it comes."""

from typing import Protocol

from msgspec import Struct


class Content(Struct, frozen=True):
    """Words for the reader."""

    text: str


class Reasoning(Struct, frozen=True):
    """Words of thinking, without their markers."""

    text: str


class CallStart(Struct, frozen=True):
    """A tool is called; its arguments follow."""

    index: int  # of the call in this answer, from 0
    id: str
    name: str


class CallArguments(Struct, frozen=True):
    """A piece of a call's arguments, which are JSON."""

    index: int
    text: str


Part = Content | Reasoning | CallStart | CallArguments


class OutputParser(Protocol):
    """One answer on its way from text to parts. However the text is cut into pieces, the parts say the same, and a part is
    given out as soon as it cannot mean anything else."""

    @property
    def is_reasoning(self) -> bool:
        """The last piece left it inside the reasoning."""
        ...

    @property
    def is_holding(self) -> bool:
        """Some of the reasoning is held back: it may be a marker."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whatever comes from now on is content as it stands."""
        ...

    @property
    def num_markers(self) -> int:
        """Markers taken out of the text so far."""
        ...

    def simple_part_or_none(self, piece: str) -> Part | None:
        """What `feed` would give, where that is one part of this text and nothing is held back before or behind; else None,
        and the piece is still to be fed."""
        ...

    def feed(self, piece: str) -> list[Part]: ...

    def finish(self) -> list[Part]:
        """What is still held back when the answer has ended."""
        ...
