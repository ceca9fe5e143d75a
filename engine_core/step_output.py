"""What the scheduler has for the streams after one step; the outbox turns it into records. No torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine_core.plan import Int32Array, TokenScores
from engine_core.sequence import Sequence
from ipc.record import Failure, Finish, FinishCode, Scored


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


def finish_record(
    sequence: Sequence, code: FinishCode, num_output_tokens: int, stop_token_id: int, now_ns: int
) -> Finish:
    """How a sequence ends, with its counts and times."""
    first_scheduled_ns = sequence.first_scheduled_ns or now_ns  # a stopped one may never have come so far
    first_token_ns = sequence.first_token_ns or now_ns
    return Finish(
        stream=sequence.number,
        code=code,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_output_tokens=num_output_tokens,
        stop_token_id=stop_token_id,
        num_preemptions=sequence.num_preemptions,
        queue_us=(first_scheduled_ns - sequence.arrival_ns) // 1000,
        prefill_us=(first_token_ns - first_scheduled_ns) // 1000,
        decode_us=(now_ns - first_token_ns) // 1000,
    )


def scored(
    sequence: Sequence, token: int, own: TokenScores, *, is_stop: bool = False, prompt_place: int = 0
) -> tuple[int, Scored]:
    """A token with its scores, and the worker it goes to."""
    entry = Scored(sequence.number, token, is_stop, own.rank, own.logprob, own.ids, own.logprobs, prompt_place)
    return sequence.slot, entry
