"""What may follow an output that is held to a grammar, where a model may reason before it answers: reasoning is free.

Looks at the tokens alone, as engine_core.grammar and engine_core.thinking_limit do. No torch.
"""

from engine_core.grammar import Bits, Matcher
from engine_core.thinking_limit import Output, place_of
from ipc.messages import Thinking


def allowed_next(matcher: Matcher, output: Output, thinking: Thinking | None) -> Bits | None:
    """(vocab_size,) what may follow; None: anything. A model that may answer at once may also begin with its start marker, if
    that is one token: of several the first is often an ordinary word."""
    if thinking is None:
        return matcher.allowed(output)
    start_ids = thinking.start_ids
    begins_with_marker = output[: len(start_ids)].tolist() == list(start_ids)
    if thinking.waits_for_start and not begins_with_marker:
        allowed = matcher.allowed(output)
        if not len(output) and len(start_ids) == 1:
            allowed[start_ids[0]] = True
        return allowed
    start = len(start_ids) if begins_with_marker else 0
    end = place_of(output[start:], thinking.end_ids)
    return None if end < 0 else matcher.allowed(output[start + end + len(thinking.end_ids) :])
