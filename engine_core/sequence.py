"""What the engine knows of one request and does not change from step to step. What does, lives in `BatchState`."""

from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from engine_core.grammar import Matcher
from ipc.messages import Pooling, SamplingParams, generation_of, number_of, slot_of

NO_ROW = -1


class SequenceState(Enum):
    """waiting -> running -> ended, with running -> waiting on preemption and waiting -> ended on abort or deadline."""

    WAITING = auto()
    RUNNING = auto()  # owns a row of BatchState and its blocks
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One request. The scheduler owns and changes it; nobody else stores to it.

    While the sequence runs, its tokens stand in `BatchState.token_ids[row]`; while it waits (again), in `token_ids`.
    """

    stream_id: int
    request_id: str
    sampling: SamplingParams
    token_ids: NDArray[np.int32]  # (n,) the prompt; after a preemption the prompt and what was generated
    num_prompt_tokens: int
    max_total_len: int  # prompt and output together, as far as max_tokens, the context and the KV pool allow
    arrival: int  # growing number: breaks ties of priority
    arrival_ns: int  # CLOCK_MONOTONIC, as all times here
    block_links: list[bytes] = field(default_factory=list)  # chained hash of every full block known so far
    is_cacheable: bool = False  # False: neither looked up nor published in the prefix cache
    is_streaming: bool = True
    priority: int = 0
    fair_key: int = 0  # whose account it is on; 0: nobody's
    deadline_s: float | None = None
    num_delivered: int = 0  # output tokens that an engine before this one gave the client; they stand in token_ids
    seed_stream_id: int | None = None  # draws as that stream did, when the request brought no seed
    pooling: int = Pooling.NONE
    embedding: NDArray[np.float32] | None = None  # (hidden_size,) of one that pools, when it ends

    matcher: Matcher | None = None  # of the sampling parameters' grammar

    state: SequenceState = SequenceState.WAITING
    row: int = NO_ROW
    num_cached_tokens: int = 0  # prompt tokens served by the prefix cache at the first start
    num_preemptions: int = 0
    first_scheduled_ns: int = 0  # 0: never yet
    first_token_ns: int = 0

    @property
    def slot(self) -> int:
        return slot_of(self.stream_id)

    @property
    def generation(self) -> int:
        return generation_of(self.stream_id)

    @property
    def number(self) -> int:
        return number_of(self.stream_id)

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller runs first; the largest is preempted first."""
        return (self.priority, self.arrival)

    def __lt__(self, other: "Sequence") -> bool:
        return self.rank < other.rank
