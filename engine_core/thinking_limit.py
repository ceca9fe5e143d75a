"""When a model has thought for long enough, and which token then ends it. No torch here.

Looks at nothing but the tokens that were generated, so that preemption and the resumption of a sequence change nothing.
"""

import numpy as np
from numpy.typing import NDArray

from ipc.messages import Thinking

Output = NDArray[np.int32]


def forced_token_or_none(output: Output, thinking: Thinking) -> int | None:
    """The token that must come next; None while the model may choose."""
    start = _start_or_none(output, thinking)
    if start is None or len(output) - start < thinking.max_tokens:
        return None
    if place_of(output[start:], thinking.end_ids) >= 0:
        return None
    num_forced = len(output) - start - thinking.max_tokens
    return thinking.end_ids[num_forced] if num_forced < len(thinking.end_ids) else None


def _start_or_none(output: Output, thinking: Thinking) -> int | None:
    """Where the reasoning begins; None where it has not."""
    width = len(thinking.start_ids)
    if not thinking.waits_for_start:
        begins_with_marker = width > 0 and output[:width].tolist() == list(thinking.start_ids)
        return width if begins_with_marker else 0
    at = place_of(output, thinking.start_ids)
    return None if at < 0 else at + width


def place_of(output: Output, ids: tuple[int, ...]) -> int:
    """Where the ids first stand in the output, or -1."""
    for at in np.flatnonzero(output == ids[0]).tolist():
        if output[at : at + len(ids)].tolist() == list(ids):
            return at
    return -1
