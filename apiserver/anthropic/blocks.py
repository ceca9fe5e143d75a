"""The content of a message as its parts make it: blocks of text, of thinking, of tool use, whole or as they come.

https://platform.claude.com/docs/en/api/messages-streaming (2026-11). Thinking has no signature here: nothing checks one.
"""

from typing import Any

import msgspec

from apiserver.output_parts import CallArguments, CallStart, Content, Part, Reasoning

Fields = dict[str, Any]  # Any: JSON


def block_start(part: Part) -> Fields:
    """The empty block that begins with this part."""
    match part:
        case Content():
            return {"type": "text", "text": ""}
        case Reasoning():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case CallStart(id=call_id, name=name):
            return {"type": "tool_use", "id": call_id, "name": name, "input": {}}
        case CallArguments():
            raise AssertionError("arguments of a call that never began")


def block_delta(part: Part) -> Fields | None:
    """None: the part has nothing to add to the block it begins."""
    match part:
        case Content(text=text):
            return {"type": "text_delta", "text": text}
        case Reasoning(text=text):
            return {"type": "thinking_delta", "thinking": text}
        case CallArguments(text=text):
            return {"type": "input_json_delta", "partial_json": text}
        case CallStart():
            return None


def goes_on(block: Fields, part: Part) -> bool:
    """Whether the part belongs to this block; else it begins the next. A call's arguments always follow its start."""
    match part:
        case Content():
            return bool(block["type"] == "text")
        case Reasoning():
            return bool(block["type"] == "thinking")
        case CallStart():
            return False
        case CallArguments():
            return True


def blocks_of(parts: list[Part]) -> list[Fields]:
    """The whole content."""
    blocks: list[Fields] = []
    arguments: list[str] = []
    for part in parts:
        if not blocks or not goes_on(blocks[-1], part):
            blocks.append(block_start(part))
            arguments = []
        match part:
            case Content(text=text):
                blocks[-1]["text"] += text
            case Reasoning(text=text):
                blocks[-1]["thinking"] += text
            case CallArguments(text=text):
                arguments.append(text)
                blocks[-1]["input"] = _input("".join(arguments))
    return blocks


def _input(arguments: str) -> Fields:
    """What the model wrote, where it is an object: an answer that was cut off may have none."""
    try:
        content = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {}
    return content if isinstance(content, dict) else {}
