"""`truncation: auto`: a conversation too long for the context loses its oldest turns, never its instructions."""

from collections.abc import Awaitable, Callable, Sequence

from apiserver.routes.chat_intake import RenderedChat
from apiserver.schema.requests import Message

Render = Callable[[list[Message]], Awaitable[RenderedChat]]


async def fitting_chat(messages: Sequence[Message], room: int, render: Render) -> RenderedChat:
    """The longest end of the conversation that has at most `room` tokens; where not even its last turn fits, that turn.

    A turn begins with a message of the user's: what answers it goes with it. Bisects, so a long conversation is
    rendered and encoded a few times.
    """
    leading = _num_leading(messages)
    starts = [place for place in range(leading, len(messages)) if messages[place].role == "user"] or [leading]
    rendered = await render(list(messages))
    if rendered.prompt.num_tokens <= room or len(starts) == 1:
        return rendered
    fits: RenderedChat | None = None
    low, high = 1, len(starts) - 1
    while low <= high:
        middle = (low + high) // 2
        shorter = await render([*messages[:leading], *messages[starts[middle] :]])
        if shorter.prompt.num_tokens <= room:
            fits, high = shorter, middle - 1
        else:
            rendered, low = shorter, middle + 1
    return fits if fits is not None else rendered


def _num_leading(messages: Sequence[Message]) -> int:
    """System messages at the beginning."""
    for place, message in enumerate(messages):
        if message.role not in ("system", "developer"):
            return place
    return len(messages)
