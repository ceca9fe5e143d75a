"""The content of a message as its parts make it: blocks of text and of thinking, whole or as they come.

https://platform.claude.com/docs/en/api/messages-streaming (2026-11). Thinking has no signature here: nothing checks one.
"""

from typing import Any

from apiserver.output_parts import Content, Part, Reasoning

Fields = dict[str, Any]  # Any: JSON


def block_start(part: Part) -> Fields:
    """The empty block that begins with this part."""
    match part:
        case Content():
            return {"type": "text", "text": ""}
        case Reasoning():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case _:
            raise AssertionError("tools are refused before")


def block_delta(part: Part) -> Fields:
    match part:
        case Content(text=text):
            return {"type": "text_delta", "text": text}
        case Reasoning(text=text):
            return {"type": "thinking_delta", "thinking": text}
        case _:
            raise AssertionError("tools are refused before")


def goes_on(block: Fields, part: Part) -> bool:
    """Whether the part belongs to this block; else it begins the next."""
    return bool(block["type"] == block_start(part)["type"])


def blocks_of(parts: list[Part]) -> list[Fields]:
    """The whole content."""
    blocks: list[Fields] = []
    for part in parts:
        if not blocks or not goes_on(blocks[-1], part):
            blocks.append(block_start(part))
        if isinstance(part, Content | Reasoning):
            blocks[-1]["text" if isinstance(part, Content) else "thinking"] += part.text
    return blocks
