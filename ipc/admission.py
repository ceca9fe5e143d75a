"""What the broker knows of its engines' load: who is in flight where, what may be admitted, which engine takes it.

No sockets here: the broker feeds it facts and asks. Decided before any prefill, each per engine:

    requests beyond `max_num_seqs` that may wait
    prompt tokens that may wait; one that finds none waiting is always admitted, or a long one could never run
    a deadline that the requests before it would not leave time for
    with several keys, one key's part of the queue: no more than what it leaves free for others (the dynamic threshold of
    Choudhury and Hahne, 1998), so a queue that one key fills still has room for the rest
"""

import math
import time
from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

MAX_PREFIX_KEYS = 65_536
EXPECTED_OUTPUT_TOKENS = 512  # clients' max_tokens is usually "the rest of the context": more says nothing
AFFINITY_SLACK_TOKENS = 4_096
MAX_RETRY_AFTER_S = 60
REFUSALS = ("no_engine", "max_num_queued_reqs", "max_num_queued_tokens", "key_share", "deadline")  # metric labels
NEWEST_WEIGHT = 0.1  # of one more run time in the mean
WAITING_WEIGHT = 4  # of a token whose request has not started; as in vLLM's balancer of engine cores, DPLBAsyncMPClient


class Admitted(Struct):
    """One request in flight on an engine."""

    num_prompt_tokens: int
    expected_tokens: int  # what it adds to the engine's load
    fair_key: int = 0
    started_at_s: float = 0.0  # CLOCK_MONOTONIC; 0: it waits


class Refusal(Struct, frozen=True):
    reason: str  # metric label
    retry_after_s: int


class EngineLoad:
    """One connected engine."""

    def __init__(self, index: int, generation: int, max_num_seqs: int) -> None:
        self.index, self.generation = index, generation
        self._max_num_seqs = max_num_seqs
        self.in_flight: dict[int, Admitted] = {}
        self.num_waiting = 0
        self.waiting_tokens = 0
        self.expected_tokens = 0
        self.waiting_of_key: dict[int, int] = {}
        self._run_s = 0.0  # moving mean of the time from start to end; 0: none has ended yet

    def admit(self, stream_id: int, num_prompt_tokens: int, max_tokens: int, fair_key: int = 0) -> None:
        expected = num_prompt_tokens + min(max_tokens, EXPECTED_OUTPUT_TOKENS)
        self.in_flight[stream_id] = Admitted(num_prompt_tokens, expected, fair_key)
        self.num_waiting += 1
        if fair_key:
            self.waiting_of_key[fair_key] = self.waiting_of_key.get(fair_key, 0) + 1
        self.waiting_tokens += num_prompt_tokens
        self.expected_tokens += expected

    def start(self, stream_id: int) -> None:
        admitted = self.in_flight.get(stream_id)
        if admitted is not None and not admitted.started_at_s:
            admitted.started_at_s = time.monotonic()
            self._leave_queue(admitted)

    def end(self, stream_id: int) -> None:
        admitted = self.in_flight.get(stream_id)
        if admitted is None:
            return
        if admitted.started_at_s:
            run_s = time.monotonic() - admitted.started_at_s
            self._run_s += (run_s - self._run_s) * NEWEST_WEIGHT if self._run_s else run_s
        else:
            self._leave_queue(admitted)
        del self.in_flight[stream_id]
        self.expected_tokens -= admitted.expected_tokens

    @property
    def load_tokens(self) -> int:
        """What the engine has before it. That it does not start what waits, of which its Progress tells at every step, says
        that it is fuller than the tokens: the K/V of long contexts, say."""
        return self.expected_tokens + (WAITING_WEIGHT - 1) * self.waiting_tokens

    def wait_s(self) -> float:
        """How long one more request would wait: those that are too many, at the pace at which full engines end them.

        0 while there is a place, and before the first end. Places are sequences: an engine that runs fewer because its K/V
        is full is slower than this says.
        """
        num_too_many = len(self.in_flight) + 1 - self._max_num_seqs
        return max(0, num_too_many) * self._run_s / self._max_num_seqs

    def retry_after_s(self) -> int:
        """Whole seconds until the present backlog is gone, at least 1."""
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self.wait_s())))

    def _leave_queue(self, admitted: Admitted) -> None:
        self.num_waiting -= 1
        self.waiting_tokens -= admitted.num_prompt_tokens
        if admitted.fair_key:
            self.waiting_of_key[admitted.fair_key] -= 1
            if not self.waiting_of_key[admitted.fair_key]:
                del self.waiting_of_key[admitted.fair_key]


class Admission:
    """All engines, and the one decision: where a request goes, or why it goes nowhere."""

    def __init__(self, *, max_num_seqs: int, max_num_queued_reqs: int, max_num_queued_tokens: int) -> None:
        self.engines: dict[int, EngineLoad] = {}
        self._max_num_seqs, self._max_num_queued_reqs = max_num_seqs, max_num_queued_reqs
        self._max_waiting_tokens = max_num_queued_tokens
        self._engine_of_prefix: OrderedDict[int, int] = OrderedDict()
        self._engine_of_stream: dict[int, EngineLoad] = {}

    def connect(self, index: int, generation: int, running: Iterable[int]) -> None:
        """An engine said hello. What it runs already counts as started; its sizes are unknown to a new broker."""
        engine = self.engines[index] = EngineLoad(index, generation, self._max_num_seqs)
        for stream_id in running:
            engine.admit(stream_id, 0, EXPECTED_OUTPUT_TOKENS)
            engine.start(stream_id)
            self._engine_of_stream[stream_id] = engine

    def disconnect(self, index: int) -> list[int]:
        """An engine is gone; returns the streams it takes with it."""
        engine = self.engines.pop(index, None)
        if engine is None:
            return []
        for stream_id in engine.in_flight:
            del self._engine_of_stream[stream_id]
        return list(engine.in_flight)

    def place(
        self,
        stream_id: int,
        num_prompt_tokens: int,
        max_tokens: int,
        prefix_key: int,
        *,
        deadline_s: float = 0.0,
        fair_key: int = 0,
        is_bounded: bool = True,
    ) -> EngineLoad | Refusal:
        """Least load, unless the engine that holds the prompt's prefix is not much busier.

        `is_bounded` False: it was admitted before, by an engine that is gone, and only the lack of one can refuse it.
        """
        if not self.engines:
            return Refusal("no_engine", 2)
        least = min(self.engines.values(), key=lambda engine: engine.load_tokens)
        engine = self._with_prefix_or_none(prefix_key, least) or least
        refusal = self._refusal_or_none(engine, num_prompt_tokens, deadline_s, fair_key) if is_bounded else None
        if refusal is not None and engine is not least:
            engine, refusal = least, self._refusal_or_none(least, num_prompt_tokens, deadline_s, fair_key)
        if refusal is not None:
            return refusal
        engine.admit(stream_id, num_prompt_tokens, max_tokens, fair_key)
        self._engine_of_stream[stream_id] = engine
        self._remember_prefix(prefix_key, engine.index)
        return engine

    def engine_of(self, stream_id: int) -> EngineLoad | None:
        return self._engine_of_stream.get(stream_id)

    def start(self, stream_id: int) -> None:
        engine = self._engine_of_stream.get(stream_id)
        if engine is not None:
            engine.start(stream_id)

    def end(self, stream_id: int) -> None:
        engine = self._engine_of_stream.pop(stream_id, None)
        if engine is not None:
            engine.end(stream_id)

    def streams_of_slot(self, slot: int, before_generation: int) -> list[int]:
        """Streams of a worker's earlier generations."""
        return [
            stream_id
            for stream_id in self._engine_of_stream
            if stream_id >> 48 == slot and stream_id >> 32 & 0xFFFF != before_generation & 0xFFFF
        ]

    def _with_prefix_or_none(self, prefix_key: int, least: EngineLoad) -> EngineLoad | None:
        engine = self.engines.get(self._engine_of_prefix.get(prefix_key, -1)) if prefix_key else None
        if engine is None or engine.expected_tokens > least.expected_tokens * 1.5 + AFFINITY_SLACK_TOKENS:
            return None
        return engine

    def _refusal_or_none(
        self, engine: EngineLoad, num_prompt_tokens: int, deadline_s: float, fair_key: int
    ) -> Refusal | None:
        num_free = self._max_num_seqs + self._max_num_queued_reqs - len(engine.in_flight)
        if num_free <= 0:
            return Refusal("max_num_queued_reqs", engine.retry_after_s())
        if fair_key and num_free <= self._max_num_queued_reqs and engine.waiting_of_key.get(fair_key, 0) > num_free:
            return Refusal("key_share", engine.retry_after_s())
        if engine.waiting_tokens and engine.waiting_tokens + num_prompt_tokens > self._max_waiting_tokens:
            return Refusal("max_num_queued_tokens", engine.retry_after_s())
        if deadline_s and time.monotonic() + engine.wait_s() > deadline_s:
            return Refusal("deadline", engine.retry_after_s())
        return None

    def _remember_prefix(self, prefix_key: int, index: int) -> None:
        if not prefix_key:
            return
        self._engine_of_prefix[prefix_key] = index
        self._engine_of_prefix.move_to_end(prefix_key)
        if len(self._engine_of_prefix) > MAX_PREFIX_KEYS:
            self._engine_of_prefix.popitem(last=False)
