"""`truncation: auto`: a conversation too long for the context loses its oldest turns, never its instructions."""

from collections.abc import Awaitable, Callable, Sequence

from apiserver.generation import Prompt
from apiserver.schema.requests import Message

Encode = Callable[[list[Message]], Awaitable[Prompt]]


async def fitting_prompt(messages: Sequence[Message], room: int, encode: Encode) -> Prompt:
    """The longest end of the conversation that has at most `room` tokens; where not even its last turn fits, that turn.

    A turn begins with a message of the user's: what answers it goes with it. Bisects, so a long conversation is
    encoded a few times.
    """
    leading = _num_leading(messages)
    starts = [place for place in range(leading, len(messages)) if messages[place].role == "user"] or [leading]
    prompt = await encode(list(messages))
    if prompt.num_tokens <= room or len(starts) == 1:
        return prompt
    fits: Prompt | None = None
    low, high = 1, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        shorter = await encode([*messages[:leading], *messages[starts[middle] :]])
        if shorter.num_tokens <= room:
            fits, high = shorter, middle - 1
        else:
            prompt, low = shorter, middle + 1
    return fits if fits is not None else prompt


def _num_leading(messages: Sequence[Message]) -> int:
    """System messages at the beginning."""
    for place, message in enumerate(messages):
        if message.role not in ("system", "developer"):
            return place
    return len(messages)
