"""The worker's one door to the engines: requests out over the broker, tokens back out of the rings.

Per engine step: the doorbell wakes the loop once, each record becomes Python ints in one call, and each token takes the lane
of its stream (apiserver.hot_path) or goes through its sink. No task, no queue, no message per token. A wake-up that finds a
long backlog handles a bounded part and comes back after the other connections had a turn.

With a journal a stream outlives its engine: it is parked when the broker says that the engine is lost, and goes on, under
another number, when the broker says that one is ready.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from apiserver.hot_path import HotPath
from apiserver.journal import Journal
from apiserver.sink import (
    ABORTED,
    CRASHED,
    ENGINE_LOST,
    RING_CORRUPT,
    EmbeddingSink,
    PromptSink,
    Sink,
    StreamError,
    failure_of,
    refusal_of,
)
from ipc.block_hash import HASH_BYTES, chain
from ipc.doorbell import Doorbell
from ipc.errors import RingCorrupt
from ipc.messages import (
    Abort,
    Answered,
    Control,
    EngineLost,
    EngineReady,
    Envelope,
    ForWorker,
    FromWorker,
    Generate,
    Kind,
    Pooling,
    Rejected,
    SamplingParams,
    StreamId,
    VllmExtras,
    make_stream_id,
    number_of,
)
from ipc.record import (
    FINISH_WORDS,
    HEADER_WORDS,
    NO_STOP_TOKEN,
    Failure,
    Finish,
    Scored,
    unpack_record,
)
from ipc.ring import RingReader

logger = logging.getLogger(__name__)

RECORDS_PER_WAKE_UP = 64
HELD_BACK_S = 0.001  # that a message waits for others of the same turn of the loop, the longer the turn the longer
AFFINITY_BLOCKS = 4  # prompts that share this many first blocks like the same engine


class Broker(Protocol):
    """The part of ipc.sockets.WorkerSocket that is used here."""

    @property
    def fd(self) -> int: ...
    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None: ...
    def flush(self) -> None: ...
    def receive(self) -> list[ForWorker]: ...
    def close(self) -> None: ...


class EngineClient:
    """All streams of one worker."""

    def __init__(
        self,
        *,
        slot: int,
        generation: int,
        rings: Sequence[RingReader],
        doorbell: Doorbell,
        connect: Callable[[Callable[[], list[int]]], Broker],
        block_size: int,
        enable_prefix_caching: bool,
        on_drained: Callable[[int], object] = lambda _num_tokens: None,
        journal: Journal | None = None,
        on_resumed: Callable[[], object] = lambda: None,
        hot_path: HotPath | None = None,
    ) -> None:
        """`on_drained` hears, at the end of each wake-up, how many tokens the engines have made; `on_resumed` of each
        stream that another engine goes on with. Without a journal the streams of a lost engine end with an error."""
        self._slot, self._generation = slot, generation
        self._rings, self._doorbell = rings, doorbell
        self._on_drained = on_drained
        self._journal, self._on_resumed = journal, on_resumed
        self.hot_path = hot_path or HotPath()
        """Takes the tokens of the streams that have a lane there; the others' go through their sinks."""
        self._block_size = block_size if enable_prefix_caching else 0
        self._sinks: dict[int, Sink] = {}
        self._next_number = 1
        self._broker = connect(lambda: [make_stream_id(slot, generation, number) for number in self._sinks])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._will_exchange = False
        self._held_since_s, self._held_back_s = 0.0, HELD_BACK_S
        self.on_control: Callable[[Control | Answered], object] = lambda _message: None
        """Hears what an operator says to the fleet, through this worker or another, and what came of it."""

    @property
    def num_streams(self) -> int:
        return len(self._sinks)

    @property
    def oldest_age_s(self) -> float:
        """Since the oldest stream in flight was submitted; 0 when there is none."""
        oldest = next(iter(self._sinks.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.submitted_s

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen. Call from the loop that serves the connections."""
        self._loop = loop
        self._broker.flush()
        loop.add_reader(self._doorbell.fd, self.drain)
        loop.add_reader(self._broker.fd, self.exchange)
        self.drain()

    def close(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._doorbell.fd)
        self._loop.remove_reader(self._broker.fd)
        self._broker.close()

    def submit(
        self,
        prompt: bytes,
        sampling: SamplingParams,
        sink: Sink,
        *,
        request_id: str,
        is_streaming: bool,
        block_hashes: bytes = b"",
        priority: int = 0,
        deadline_s: float | None = None,
        fair_key: int = 0,
        pooling: int = Pooling.NONE,
        vllm: VllmExtras | None = None,
    ) -> StreamId:
        """Send one sequence to the engines; `prompt` is little-endian u32 ids. The sink hears of it until it ends."""
        number = self._free_number()
        stream_id = make_stream_id(self._slot, self._generation, number)
        self._sinks[number] = sink
        envelope = Envelope(
            Kind.GENERATE,
            stream_id,
            len(prompt) // 4,
            sampling.max_tokens,
            _prefix_key(block_hashes),
            priority,
            deadline_s or 0.0,
            fair_key,
        )
        message = Generate(
            stream_id=stream_id,
            request_id=request_id,
            sampling=sampling,
            block_hashes=block_hashes,
            is_streaming=is_streaming,
            priority=priority,
            deadline_s=deadline_s,
            fair_key=fair_key,
            pooling=pooling,
            vllm=vllm,
        )
        if self._journal is not None:
            self._journal.begin(number, envelope, message, prompt)
        self._send(envelope, message, prompt)
        return stream_id

    def block_hashes(self, prompt: bytes, salt: bytes = b"") -> bytes:
        """Of a prompt, for any number of `submit`s; empty when the engines cache nothing."""
        return chain(prompt, self._block_size, salt) if self._block_size else b""

    def abort(self, stream_id: StreamId) -> None:
        """Forget the stream; its K/V is freed within a step or two. Unknown ones have ended already."""
        if self._take_sink(number_of(stream_id)) is not None:
            self._send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))

    def stop(self, stream_id: StreamId) -> None:
        """Make the engine end the stream now; its finish still comes."""
        if number_of(stream_id) in self._sinks:
            if self._journal is not None:
                self._journal.stop(number_of(stream_id))
            self._send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id, wants_finish=True))

    def new_ticket(self) -> int:
        """For a Control of this worker."""
        return make_stream_id(self._slot, self._generation, self._free_number())

    def control(self, message: Control) -> None:
        """To every engine and every worker, this one among them."""
        self._send(Envelope(Kind.CONTROL, StreamId(message.ticket)), message)

    def abort_parked(self, request_ids: frozenset[str]) -> None:
        """End the requests of these ids, or all, that no engine has because theirs was lost."""
        if self._journal is not None:
            for number in self._journal.parked_of(request_ids):
                self._fail(number, ABORTED)

    def exchange(self) -> None:
        """Send what this turn of the loop had for the broker, in one piece; take what the broker has sent.

        Both, because ZMQ's descriptor is edge-triggered and a send may swallow the edge. Only from the loop: sinks are told
        of failures here.
        """
        self._will_exchange = False
        self._broker.flush()
        for message in self._broker.receive():
            match message:
                case Rejected():
                    self._on_rejected(message)
                case EngineLost():
                    self._drain_to_the_end()  # what the engine published before it died comes first
                    self._lose([number_of(stream_id) for stream_id in message.stream_ids], ENGINE_LOST)
                case EngineReady():
                    self._resume_parked()
                case Control() | Answered():
                    self.on_control(message)
        if self._journal is not None:
            for number in self._journal.overdue():
                self._fail(number, ENGINE_LOST)

    def _send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        """Leaves with others of this turn of the loop, before it sleeps again. Of many requests that come at once the first do
        not wait until the last is tokenized: an engine would stand still meanwhile. Every piece wakes the broker and the
        engine, so that each waits twice as long as the one before."""
        self._broker.send(envelope, message, prompt)
        if self._loop is None:
            return
        now_s = time.monotonic()
        if not self._will_exchange:
            self._will_exchange = True
            self._held_since_s, self._held_back_s = now_s, HELD_BACK_S
            self._loop.call_soon(self.exchange)
        elif now_s - self._held_since_s > self._held_back_s:
            self._held_since_s, self._held_back_s = now_s, 2 * self._held_back_s
            self._broker.flush()

    def _on_rejected(self, rejected: Rejected) -> None:
        number = number_of(rejected.stream_id)
        if self._journal is not None and self._journal.has_moved(number):
            self._lose([number], ENGINE_LOST)  # its next engine is gone already: another will be ready
        else:
            self._fail(number, refusal_of(rejected))

    def _lose(self, numbers: list[int], error: StreamError) -> None:
        """Nothing more comes for these streams as they are."""
        numbers = [number for number in numbers if number in self._sinks]
        if self._journal is not None:
            numbers = self._journal.park(numbers)
            for finish in self._journal.finishes():
                self._end(finish)
        for number in numbers:
            self._fail(number, error)

    def _resume_parked(self) -> None:
        """Go on with what was lost, in whatever engine is ready."""
        if self._journal is None:
            return
        for number, entry in self._journal.take_parked().items():
            new_number = self._free_number()
            stream_id = make_stream_id(self._slot, self._generation, new_number)
            sink = self._sinks[new_number] = self._sinks.pop(number)
            sink.stream_id = stream_id
            self.hot_path.move(number, new_number)
            self._journal.move(number, new_number)
            self._send(*entry.resume(stream_id))
            self._on_resumed()

    def _free_number(self) -> int:
        """32 bits, never that of a living stream."""
        while True:
            number = self._next_number
            self._next_number = number % 0xFFFFFFFF + 1
            if number not in self._sinks:
                return number

    # ── from the engines ─────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Hand out what the engines have published: the doorbell's callback."""
        self._doorbell.clear()
        for ring in self._rings:
            self._take_turn(ring)

    def _take_turn(self, ring: RingReader) -> None:
        if self._drain_ring(ring) and self._loop is not None:
            self._loop.call_soon(self._take_turn, ring)

    def _drain_to_the_end(self) -> None:
        self._doorbell.clear()
        for ring in self._rings:
            while self._drain_ring(ring):
                pass

    def _drain_ring(self, ring: RingReader) -> bool:
        """Hand out a bounded part of what is there; whether there may be more."""
        try:
            payloads = ring.poll(RECORDS_PER_WAKE_UP)
        except RingCorrupt:
            self._on_corrupt(ring)
            return False
        if not payloads:
            return False
        touched: list[Sink] = []
        ended: list[Finish | Failure] = []
        num_made = 0
        hand_out = self._hand_out if len(payloads) == 1 else self._collect
        note = self._journal.note if self._journal is not None else None
        for payload in payloads:
            words = payload.cast("I").tolist()
            num_tokens = words[0]
            middle = HEADER_WORDS + num_tokens
            num_made += num_tokens
            if note is not None and num_tokens:
                note(payload[4 * HEADER_WORDS : 4 * (middle + num_tokens)])
            hand_out(words[HEADER_WORDS:middle], words[middle : middle + num_tokens], touched)
            if words[1] or words[2] or words[3] or words[4] or words[5] or words[6]:
                num_made += self._take_rest(payload, words, touched, ended)
        ring.release()
        self._flush(touched)
        for end in ended:
            self._end(end)
        self._on_drained(num_made)
        return len(payloads) == RECORDS_PER_WAKE_UP

    def _hand_out(self, numbers: list[int], tokens: list[int], _touched: list[Sink]) -> None:
        """The only record of this wake-up."""
        now_s = time.monotonic()
        for number, token in self.hot_path.deliver(numbers, tokens, now_s):
            sink = self._sinks.get(number)
            if sink is not None:
                try:
                    sink.take(token, now_s)
                except Exception:
                    self._on_crash(sink)

    def _collect(self, numbers: list[int], tokens: list[int], touched: list[Sink]) -> None:
        """One of several records: what they have for one stream leaves together."""
        sink_of = self._sinks.get
        for number, token in zip(numbers, tokens, strict=True):
            sink = sink_of(number)
            if sink is not None:
                sink.tokens.append(token)
                touched.append(sink)

    def _flush(self, touched: list[Sink]) -> None:
        """A stream that several records touched stands several times here, and is flushed once."""
        now_s = time.monotonic()
        for sink in touched:
            if sink.tokens:
                try:
                    sink.flush(now_s)
                except Exception:
                    self._on_crash(sink)

    def _take_rest(
        self, payload: memoryview, words: list[int], touched: list[Sink], ended: list[Finish | Failure]
    ) -> int:
        """The sections behind the tokens; returns the number of tokens in them. Finishes alone, the common case, need
        no second look at the payload."""
        num_tokens, num_finishes, *others = words[:HEADER_WORDS]
        if not any(others):
            first = HEADER_WORDS + 2 * num_tokens
            starts = range(first, first + num_finishes * FINISH_WORDS, FINISH_WORDS)
            finishes = [Finish(*words[start : start + FINISH_WORDS]) for start in starts]
            ended += finishes
            return _num_stop_tokens(finishes)
        record = unpack_record(payload)
        for number, token_ids in record.bulks:
            sink = self._sinks.get(number)
            if sink is not None:
                sink.tokens.extend(token_ids)
                touched.append(sink)
                if self._journal is not None:
                    self._journal.note(array("I", [number] * len(token_ids) + token_ids).tobytes())
        for scored in record.scored:
            self._take_scored(scored, touched)
        for embedding in record.embeddings:
            sink = self._sinks.get(embedding.stream)
            if sink is not None:
                cast(EmbeddingSink, sink).take_embedding(embedding)  # the engine gives them to who asked for one
        for attachment in record.attachments:
            sink = self._sinks.get(attachment.stream)
            if sink is not None:
                sink.attachment = attachment.content
        ended += record.finishes
        ended += record.failures
        num_made = sum(len(token_ids) for _, token_ids in record.bulks) + sum(
            not (s.is_stop or s.prompt_place) for s in record.scored
        )
        return num_made + _num_stop_tokens(record.finishes)

    def _take_scored(self, scored: Scored, touched: list[Sink]) -> None:
        sink = self._sinks.get(scored.stream)
        if sink is None:
            return
        if scored.prompt_place:
            cast(PromptSink, sink).take_prompt_score(scored)  # the engine gives them to who asked for them
            return
        sink.scores.append(scored)
        if not scored.is_stop:
            sink.tokens.append(scored.token)
            touched.append(sink)
            if self._journal is not None:
                self._journal.note(array("I", (scored.stream, scored.token)).tobytes())

    def _end(self, end: Finish | Failure) -> None:
        if isinstance(end, Failure):
            self._fail(end.stream, failure_of(end))
            return
        sink = self._take_sink(end.stream)
        if sink is not None:
            try:
                sink.finish(end)
            except Exception:
                logger.exception("a stream crashed at its end")
                _tell_failure(sink, CRASHED)

    def _fail(self, number: int, error: StreamError) -> None:
        sink = self._take_sink(number)
        if sink is not None:
            _tell_failure(sink, error)

    def _take_sink(self, number: int) -> Sink | None:
        """The stream ends here."""
        sink = self._sinks.pop(number, None)
        if sink is not None and self._journal is not None:
            self._journal.end(number)
        return sink

    def _on_crash(self, sink: Sink) -> None:
        """A sink that raised ends alone: the other streams of its record go on."""
        logger.exception("a stream crashed")
        del sink.tokens[:]
        for number in [number for number, other in self._sinks.items() if other is sink]:
            self._give_up(number, CRASHED)

    def _give_up(self, number: int, error: StreamError) -> None:
        stream_id = make_stream_id(self._slot, self._generation, number)
        self._send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))
        self._fail(number, error)

    def _on_corrupt(self, ring: RingReader) -> None:
        """What was lost cannot be known: every stream that might have been in it starts anew behind what was delivered,
        or ends with an error."""
        logger.exception("ring is corrupt", extra={"num_streams": len(self._sinks)})
        ring.resync()
        for number in self._sinks:
            stream_id = make_stream_id(self._slot, self._generation, number)
            self._send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))
        self._lose(list(self._sinks), RING_CORRUPT)
        self._resume_parked()


def _tell_failure(sink: Sink, error: StreamError) -> None:
    try:
        sink.fail(error)
    except Exception:
        logger.exception("a stream crashed when told that it failed")


def _num_stop_tokens(finishes: list[Finish]) -> int:
    """Tokens that only their finish tells of."""
    return sum(finish.stop_token_id != NO_STOP_TOKEN for finish in finishes)


def _prefix_key(block_hashes: bytes) -> int:
    """64 bits of the chained hash of the first blocks; 0 when the prompt fills none."""
    end = min(len(block_hashes), AFFINITY_BLOCKS * HASH_BYTES)
    return int.from_bytes(block_hashes[end - 8 : end], "little") if end else 0
