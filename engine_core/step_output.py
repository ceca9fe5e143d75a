"""What the scheduler has for the streams after one step; the outbox turns it into records. No torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_core.plan import Int32Array
from ipc.record import Failure, Finish, Scored


@dataclass(frozen=True, slots=True, eq=False)
class SampledTokens:
    """What streams get from one step, as columns. Tokens that ended a sequence as stop ids are not among them."""

    slots: Int32Array  # worker of each token
    numbers: NDArray[np.uint32]  # stream number within that worker
    token_ids: Int32Array
    scored: tuple[tuple[int, Scored], ...] = ()
    """Worker and token of each stream that asked for logprobs; these are not in the columns, and stop ids are among them."""

    def followed_by(self, later: "SampledTokens") -> "SampledTokens":
        """One step's tokens in two parts; a stream may be in both."""
        return SampledTokens(
            np.concatenate((self.slots, later.slots)),
            np.concatenate((self.numbers, later.numbers)),
            np.concatenate((self.token_ids, later.token_ids)),
            self.scored + later.scored,
        )


NO_TOKENS = SampledTokens(np.zeros(0, np.int32), np.zeros(0, np.uint32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """The end of one sequence, as its worker will read it."""

    slot: int
    record: Finish | Failure
    output_ids: Int32Array | None = None  # a non-streaming request's tokens, without the stop id
    embedding: NDArray[np.float32] | None = None  # (hidden_size,), or the piece of it from `embedding_offset` on
    embedding_offset: int = 0
    attachment: bytes | None = None  # JSON
    is_last: bool = True  # False: a piece of output_ids or embedding; more follows before the end
