"""What a worker needs to go on with its requests in another engine: each as it was sent, and the tokens delivered.

It stands in the worker and not in the broker because only the worker knows what was delivered: tokens reach it through
shared memory that outlives their engine, so after that engine's death the worker reads the ring to its end and knows
exactly. The journal survives the engine, the broker, and both at once. It dies with the worker, as do the connections to
the clients that it is for.

A lost request is parked until an engine takes it: it then gets a new stream number, so that no late word of the lost
engine can be taken for its output. A draw depends on seed and position alone, so the text goes on as it would have.
"""

import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from apiserver.token_log import TokenLog
from ipc.messages import Envelope, Generate, Kind, Resume, StreamId
from ipc.record import NO_STOP_TOKEN, Finish, FinishCode

MAX_FRUITLESS = 3  # engines in a row that died under a request and had given it nothing: it may be what kills them


@dataclass(slots=True)
class Entry:
    """One unfinished request."""

    envelope: Envelope
    request: Generate
    prompt: bytes
    has_stopped: bool = False  # the worker has seen enough: a finish is all that it wants
    num_fruitless: int = 0
    num_moves: int = 0
    lost_at_s: float = 0.0  # CLOCK_MONOTONIC, while it is parked
    delivered: "array[int]" = field(default_factory=lambda: array("I"))  # known while it is parked

    @property
    def finish_code(self) -> FinishCode | None:
        """Of one that has all its tokens, and has lost nothing but its end; None: there is more to come."""
        if self.has_stopped:
            return FinishCode.ABORT
        return FinishCode.LENGTH if len(self.delivered) >= self.request.sampling.max_tokens else None

    def resume(self, stream_id: StreamId) -> tuple[Envelope, Resume, bytes]:
        """What goes over the wire to continue as this stream."""
        num_output_tokens = len(self.delivered)
        ids = self.prompt + self.delivered.tobytes()
        old = self.envelope
        envelope = Envelope(
            Kind.RESUME,
            stream_id,
            len(ids) // 4,
            old.max_tokens - num_output_tokens,
            old.prefix_key,
            old.priority,
            0.0 if num_output_tokens else old.deadline_s,
            old.fair_key,
        )
        return envelope, Resume(stream_id=stream_id, request=self.request, num_output_tokens=num_output_tokens), ids


class Journal:
    """All unfinished requests of one worker, by stream number."""

    def __init__(self, *, timeout_s: float, max_log_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._entries: dict[int, Entry] = {}
        self._parked: dict[int, Entry] = {}
        self._log = TokenLog(max_log_bytes)
        self.note: Callable[[memoryview | bytes], None] = self._log.note
        """The token section of each record, before anybody uses it."""

    def begin(self, number: int, envelope: Envelope, request: Generate, prompt: bytes) -> None:
        self._entries[number] = Entry(envelope, request, prompt)
        self._log.begin(number)

    def end(self, number: int) -> None:
        self._entries.pop(number, None)
        self._parked.pop(number, None)
        self._log.end(number)

    def stop(self, number: int) -> None:
        """It was told to end; only its finish is missing."""
        if number in self._entries:
            self._entries[number].has_stopped = True

    def has_moved(self, number: int) -> bool:
        """Whether an engine of this stream was lost before: it has been accepted, whatever is said of it now."""
        entry = self._entries.get(number)
        return entry is not None and entry.num_moves > 0

    def park(self, numbers: Iterable[int]) -> list[int]:
        """These have lost their engine, and everything it published is noted. Returns those that are not tried again."""
        lost = {number: self._entries[number] for number in numbers if number not in self._parked}
        now_s = time.monotonic()
        refused = []
        for number, delivered in self._log.tokens_of(lost).items():
            entry = lost[number]
            entry.num_fruitless = entry.num_fruitless + 1 if len(delivered) == len(entry.delivered) else 0
            entry.delivered, entry.lost_at_s = delivered, now_s
            if entry.num_fruitless > MAX_FRUITLESS:
                refused.append(number)
            else:
                self._parked[number] = entry
        return refused

    def finishes(self) -> list[Finish]:
        """Of those that are parked and need no engine any more; each is to `end`. What the lost one knew of times is lost."""
        return [
            Finish(
                stream=number,
                code=code,
                num_prompt_tokens=len(entry.prompt) // 4,
                num_cached_tokens=0,
                num_output_tokens=len(entry.delivered),
                stop_token_id=NO_STOP_TOKEN,
                num_preemptions=0,
                queue_us=0,
                prefill_us=0,
                decode_us=0,
            )
            for number, entry in self._parked.items()
            if (code := entry.finish_code) is not None
        ]

    def parked_of(self, request_ids: frozenset[str]) -> list[int]:
        """Those that wait for an engine and are of these requests; of any, where there is no id."""
        return [
            number
            for number, entry in self._parked.items()
            if not request_ids or entry.request.request_id in request_ids
        ]

    def take_parked(self) -> dict[int, Entry]:
        """Everything that waits for an engine; each is to `move` or to `end`."""
        parked, self._parked = self._parked, {}
        return parked

    def move(self, number: int, new_number: int) -> None:
        """The request goes on as another stream."""
        entry = self._entries.pop(number)
        entry.num_moves += 1
        self._entries[new_number] = entry
        self._log.end(number)
        self._log.begin(new_number, entry.delivered)

    def overdue(self) -> list[int]:
        """Those that have waited too long for an engine."""
        if not self._parked:
            return []
        since_s = time.monotonic() - self._timeout_s
        return [number for number, entry in self._parked.items() if entry.lost_at_s < since_s]
