"""What the broker knows of its engines' load: who is in flight where, what may be admitted, which engine takes it.

No sockets here: the broker feeds it facts and asks. Two bounds, both per engine, both decided before any prefill:
requests beyond `max_num_seqs` that may wait, and prompt tokens that may wait. A request that finds no token
waiting is always admitted, however long its prompt, or it could never run.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable

from msgspec import Struct

MAX_PREFIX_KEYS = 65_536
EXPECTED_OUTPUT_TOKENS = 512  # clients' max_tokens is usually "the rest of the context": more says nothing
AFFINITY_SLACK_TOKENS = 4_096
MAX_RETRY_AFTER_S = 60
REFUSALS = ("no_engine", "max_num_queued_reqs", "max_num_queued_tokens")  # metric labels


class Admitted(Struct):
    """One request in flight on an engine."""

    num_prompt_tokens: int
    expected_tokens: int  # what it adds to the engine's load
    has_started: bool = False


class Refusal(Struct, frozen=True):
    reason: str  # metric label
    retry_after_s: int


class EngineLoad:
    """One connected engine."""

    def __init__(self, index: int, generation: int) -> None:
        self.index, self.generation = index, generation
        self.in_flight: dict[int, Admitted] = {}
        self.num_waiting = 0
        self.waiting_tokens = 0
        self.load_tokens = 0
        self._ended_at_s: deque[float] = deque(maxlen=64)

    def admit(self, stream_id: int, num_prompt_tokens: int, max_tokens: int) -> None:
        expected = num_prompt_tokens + min(max_tokens, EXPECTED_OUTPUT_TOKENS)
        self.in_flight[stream_id] = Admitted(num_prompt_tokens, expected)
        self.num_waiting += 1
        self.waiting_tokens += num_prompt_tokens
        self.load_tokens += expected

    def start(self, stream_id: int) -> None:
        admitted = self.in_flight.get(stream_id)
        if admitted is not None and not admitted.has_started:
            admitted.has_started = True
            self.num_waiting -= 1
            self.waiting_tokens -= admitted.num_prompt_tokens

    def end(self, stream_id: int) -> None:
        admitted = self.in_flight.get(stream_id)
        if admitted is None:
            return
        self.start(stream_id)
        del self.in_flight[stream_id]
        self.load_tokens -= admitted.expected_tokens
        self._ended_at_s.append(time.monotonic())

    def retry_after_s(self) -> int:
        """Seconds until the present backlog has drained at the rate of the last ends; 1 when there is no rate yet."""
        if len(self._ended_at_s) < 2:
            return 1
        elapsed_s = time.monotonic() - self._ended_at_s[0]
        ends_per_s = len(self._ended_at_s) / max(elapsed_s, 0.001)
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self.num_waiting / ends_per_s)))


class Admission:
    """All engines, and the one decision: where a request goes, or why it goes nowhere."""

    def __init__(self, *, max_num_seqs: int, max_num_queued_reqs: int, max_num_queued_tokens: int) -> None:
        self.engines: dict[int, EngineLoad] = {}
        self._max_in_flight = max_num_seqs + max_num_queued_reqs
        self._max_waiting_tokens = max_num_queued_tokens
        self._engine_of_prefix: OrderedDict[int, int] = OrderedDict()
        self._engine_of_stream: dict[int, EngineLoad] = {}

    def connect(self, index: int, generation: int, running: Iterable[int]) -> None:
        """An engine said hello. What it runs already counts as started; its sizes are unknown to a new broker."""
        engine = self.engines[index] = EngineLoad(index, generation)
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
        self, stream_id: int, num_prompt_tokens: int, max_tokens: int, prefix_key: int, *, is_bounded: bool = True
    ) -> EngineLoad | Refusal:
        """Least tokens, unless the engine that holds the prompt's prefix is not much busier.

        `is_bounded` False: it was admitted before, by an engine that is gone, and only the lack of one can refuse it.
        """
        if not self.engines:
            return Refusal("no_engine", 2)
        least = min(self.engines.values(), key=lambda engine: engine.load_tokens)
        engine = self._with_prefix_or_none(prefix_key, least) or least
        refusal = self._refusal_or_none(engine, num_prompt_tokens) if is_bounded else None
        if refusal is not None and engine is not least:
            engine, refusal = least, self._refusal_or_none(least, num_prompt_tokens)
        if refusal is not None:
            return refusal
        engine.admit(stream_id, num_prompt_tokens, max_tokens)
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
        if engine is None or engine.load_tokens > least.load_tokens * 1.5 + AFFINITY_SLACK_TOKENS:
            return None
        return engine

    def _refusal_or_none(self, engine: EngineLoad, num_prompt_tokens: int) -> Refusal | None:
        if len(engine.in_flight) >= self._max_in_flight:
            return Refusal("max_num_queued_reqs", engine.retry_after_s())
        if engine.waiting_tokens and engine.waiting_tokens + num_prompt_tokens > self._max_waiting_tokens:
            return Refusal("max_num_queued_tokens", engine.retry_after_s())
        return None

    def _remember_prefix(self, prefix_key: int, index: int) -> None:
        if not prefix_key:
            return
        self._engine_of_prefix[prefix_key] = index
        self._engine_of_prefix.move_to_end(prefix_key)
        if len(self._engine_of_prefix) > MAX_PREFIX_KEYS:
            self._engine_of_prefix.popitem(last=False)
