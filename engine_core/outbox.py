"""The way back: what a step gave, as one record per worker in that worker's ring, and one ring of its doorbell.

A token costs no Python object here: the token section is cut out of the step's columns. A stop id is not in the token
section (its stream reads it in the finish); a non-streaming request's tokens travel once, in the bulk section of the
record with its finish. A bulk larger than a record goes out in pieces, in order, the finish behind the last one.

A full ring never blocks and drops nothing. Records wait in a bounded overflow list of that worker; past the bound the
worker counts as stalled and the engine cuts its streams, nobody else's. A worker that was replaced takes its list
with it: the records were for readers that no longer exist.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine_core.plan import Int32Array
from engine_core.step_output import Ending, SampledTokens
from ipc.record import (
    ATTACHMENT_WORDS,
    EMBEDDING_WORDS,
    FINISH_WORDS,
    HEADER_BYTES,
    HEADER_WORDS,
    SCORED_WORDS,
    Attachment,
    Embedding,
    Failure,
    Finish,
    Scored,
    pack_record,
)

MAX_OVERFLOW_BYTES = 8 * 1024 * 1024
"""Per worker, beyond its ring: some minutes of streams, or a few hundred long bulks."""

Words: TypeAlias = "NDArray[np.uint32] | Int32Array | array[int]"  # of 32 bits

_EMPTY_RECORD = pack_record()
_BULK_WORDS = 2
_FAILURE_WORDS = 3 + 1024 // 4  # with the longest text that pack_record lets through


class Ring(Protocol):
    """The part of ipc.ring.RingWriter that is used here."""

    @property
    def reader_generation(self) -> int: ...
    @property
    def max_payload_bytes(self) -> int: ...
    def try_publish(self, payload: bytes, generation: int) -> bool: ...


class Bell(Protocol):
    """The part of ipc.doorbell.Doorbell that is used here."""

    def ring(self) -> None: ...


class Lane:
    """One worker: its ring, its doorbell and what did not fit into the ring yet."""

    def __init__(self, ring: Ring, doorbell: Bell, max_overflow_bytes: int) -> None:
        self.ring = ring
        self.generation = ring.reader_generation
        self.is_stalled = False
        self.num_full_waits = 0  # records that had to wait for room, ever
        self._doorbell = doorbell
        self._overflow: deque[bytes] = deque()
        self._overflow_bytes = 0
        self._max_overflow_bytes = max_overflow_bytes

    @property
    def has_overflow(self) -> bool:
        return bool(self._overflow)

    def has_new_reader(self) -> bool:
        """Whether the worker was replaced since the last call; if so, what waits for the old one is forgotten."""
        generation = self.ring.reader_generation
        if generation == self.generation:
            return False
        self.generation = generation
        self._overflow.clear()
        self._overflow_bytes = 0
        self.is_stalled = False
        return True

    def send(self, records: Iterable[bytes]) -> None:
        """Publish in order, behind what waits already; then wake the worker."""
        has_published = self._flush() if self._overflow else False
        for record in records:
            if not self._overflow and self.ring.try_publish(record, self.generation):
                has_published = True
            else:
                self._overflow.append(record)
                self._overflow_bytes += len(record)
                self.num_full_waits += 1
        if self._overflow_bytes > self._max_overflow_bytes:
            self.is_stalled = True
        if has_published:
            self._doorbell.ring()

    def _flush(self) -> bool:
        has_published = False
        while self._overflow and self.ring.try_publish(self._overflow[0], self.generation):
            self._overflow_bytes -= len(self._overflow.popleft())
            has_published = True
        if not self._overflow:
            self.is_stalled = False
        return has_published


class TokenLane:
    """What one worker gets of a step, in lists."""

    __slots__ = ("numbers", "token_ids")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.token_ids: list[int] = []

    def put(self, number: int, token_ids: Sequence[int]) -> None:
        """Of one stream."""
        self.numbers += [number] * len(token_ids)
        self.token_ids += token_ids

    def take(self) -> "tuple[array[int], array[int]]":
        """Numbers and token ids; the lane is empty then."""
        taken = array("I", self.numbers), array("I", self.token_ids)
        self.numbers, self.token_ids = [], []
        return taken


class Outbox:
    """All workers. A worker's slot is its index."""

    def __init__(
        self, rings: Sequence[Ring], doorbells: Sequence[Bell], max_overflow_bytes: int = MAX_OVERFLOW_BYTES
    ) -> None:
        self._lanes = [Lane(ring, bell, max_overflow_bytes) for ring, bell in zip(rings, doorbells, strict=True)]
        self._slots = np.arange(len(self._lanes) + 1)

    @property
    def max_attachment_bytes(self) -> int:
        """A longer one is not to be sent: with the last piece of its answer it would not fit a record."""
        return min(lane.ring.max_payload_bytes for lane in self._lanes) // 2

    @property
    def num_slots(self) -> int:
        return len(self._lanes)

    @property
    def has_overflow(self) -> bool:
        """Whether anything waits for a full ring: come back soon."""
        return any(lane.has_overflow for lane in self._lanes)

    @property
    def num_full_waits(self) -> int:
        """Records that found their ring full and waited, since this process began."""
        return sum(lane.num_full_waits for lane in self._lanes)

    @property
    def stalled_slots(self) -> list[int]:
        """Workers that are past the bound of their overflow, until they have read all of it."""
        return [slot for slot, lane in enumerate(self._lanes) if lane.is_stalled]

    def reader_generation(self, slot: int) -> int | None:
        """Generation that reads this slot's ring now; 0 before the first, None when there is no such slot."""
        return self._lanes[slot].ring.reader_generation if slot < len(self._lanes) else None

    def new_readers(self) -> list[tuple[int, int]]:
        """(slot, generation) of workers that were replaced since the last call. Until it is asked, records go to nobody: they
        name the generation that they are for."""
        return [(slot, lane.generation) for slot, lane in enumerate(self._lanes) if lane.has_new_reader()]

    def publish(self, tokens: SampledTokens, endings: Sequence[Ending]) -> None:
        """One step's output: at most one record and one wake-up per worker, unless a record would be too large."""
        if tokens.scored:
            self.publish_scored(tokens.scored)
        if len(self._lanes) == 1:
            if len(tokens.token_ids) or endings or self._lanes[0].has_overflow:
                self._lanes[0].send(_records(tokens.numbers, tokens.token_ids, endings, self._lanes[0].ring))
            return
        endings_of = _by_slot(endings)
        order = np.argsort(tokens.slots, kind="stable")
        numbers, token_ids = tokens.numbers[order], tokens.token_ids[order]
        bounds = np.searchsorted(tokens.slots[order], self._slots).tolist()
        for slot, lane in enumerate(self._lanes):
            start, end = bounds[slot], bounds[slot + 1]
            if start < end or slot in endings_of or lane.has_overflow:
                lane.send(_records(numbers[start:end], token_ids[start:end], endings_of.get(slot, ()), lane.ring))

    def publish_lanes(self, lanes: Sequence[TokenLane], endings: Sequence[Ending]) -> None:
        """As `publish`, of an engine that has its tokens one by one: a lane per worker, empty afterwards."""
        endings_of = _by_slot(endings) if endings else {}
        for slot, (lane, tokens) in enumerate(zip(self._lanes, lanes, strict=True)):
            if tokens.numbers or slot in endings_of or lane.has_overflow:
                lane.send(_records(*tokens.take(), endings_of.get(slot, ()), lane.ring))

    def publish_scored(self, scored: Sequence[tuple[int, Scored]]) -> None:
        """Records of their own, before those of the step's endings."""
        for slot, lane in enumerate(self._lanes):
            own = [entry for other, entry in scored if other == slot]
            if own:
                lane.send(_scored_records(own, lane.ring))


def _by_slot(endings: Iterable[Ending]) -> dict[int, list[Ending]]:
    endings_of: dict[int, list[Ending]] = {}
    for ending in endings:
        endings_of.setdefault(ending.slot, []).append(ending)
    return endings_of


def _scored_records(scored: Iterable[Scored], ring: Ring) -> Iterator[bytes]:
    """In order, in as few records as the ring allows."""
    max_words = words_left = ring.max_payload_bytes // 4 - HEADER_WORDS
    group: list[Scored] = []
    for entry in scored:
        words = SCORED_WORDS + 2 * len(entry.ids)
        if words > words_left:
            yield pack_record(scored=group)
            group, words_left = [], max_words
        group.append(entry)
        words_left -= words
    yield pack_record(scored=group)


def _records(numbers: Words, token_ids: Words, endings: Sequence[Ending], ring: Ring) -> Iterable[bytes]:
    """The step of one worker in as few records as the ring allows. As a rule that is one, of tokens alone."""
    max_words = ring.max_payload_bytes // 4 - HEADER_WORDS
    if not endings and 0 < 2 * len(token_ids) <= max_words:
        return (_with_tokens(numbers, token_ids, _EMPTY_RECORD),)
    return _several_records(numbers, token_ids, endings, max_words)


def _several_records(numbers: Words, token_ids: Words, endings: Sequence[Ending], max_words: int) -> Iterator[bytes]:
    per_record = max_words // 2
    while len(token_ids) > per_record:
        yield _with_tokens(numbers[:per_record], token_ids[:per_record], _EMPTY_RECORD)
        numbers, token_ids = numbers[per_record:], token_ids[per_record:]
    ends = list(_packed(endings, max_words, max_words - 2 * len(token_ids)))
    if len(token_ids):
        ends[:1] = [_with_tokens(numbers, token_ids, ends[0] if ends else _EMPTY_RECORD)]
    yield from ends


def _with_tokens(numbers: Words, token_ids: Words, record: bytes) -> bytes:
    """This record of other sections, with a token section put in. Token ids are never negative: int32 is u32."""
    num_tokens = len(token_ids).to_bytes(4, "little")
    return b"".join((num_tokens, record[4:HEADER_BYTES], numbers.tobytes(), token_ids.tobytes(), record[HEADER_BYTES:]))


def _packed(endings: Sequence[Ending], max_words: int, first_words: int) -> Iterator[bytes]:
    """Records of bulks, finishes and failures: `max_words` at most beside the header, `first_words` in the first."""
    words_left = first_words
    group: list[Ending] = []
    for piece in _pieces(endings, max_words):
        words = _num_words(piece)
        if words > words_left:
            yield _pack(group)
            group, words_left = [], max_words
        group.append(piece)
        words_left -= words
    if group:
        yield _pack(group)


def _pieces(endings: Sequence[Ending], max_words: int) -> Iterator[Ending]:
    """Endings, and before one with a bulk or an embedding too large for a record its first pieces, which end nothing."""
    for ending in endings:
        per_piece = max_words - max(_BULK_WORDS, EMBEDDING_WORDS) - FINISH_WORDS - _attachment_words(ending)
        output_ids, embedding, offset = ending.output_ids, ending.embedding, 0
        while output_ids is not None and len(output_ids) > per_piece:
            yield Ending(ending.slot, ending.record, output_ids[:per_piece], is_last=False)
            output_ids = output_ids[per_piece:]
        while embedding is not None and len(embedding) > per_piece:
            yield Ending(
                ending.slot, ending.record, embedding=embedding[:per_piece], embedding_offset=offset, is_last=False
            )
            embedding, offset = embedding[per_piece:], offset + per_piece
        yield Ending(ending.slot, ending.record, output_ids, embedding, offset, ending.attachment)


def _num_words(ending: Ending) -> int:
    bulk_words = 0 if ending.output_ids is None else _BULK_WORDS + len(ending.output_ids)
    if ending.embedding is not None:
        bulk_words += EMBEDDING_WORDS + len(ending.embedding)
    return (
        bulk_words + _attachment_words(ending) + (FINISH_WORDS if isinstance(ending.record, Finish) else _FAILURE_WORDS)
    )


def _attachment_words(ending: Ending) -> int:
    return 0 if ending.attachment is None else ATTACHMENT_WORDS + (len(ending.attachment) + 3) // 4


def _pack(endings: Sequence[Ending]) -> bytes:
    ended = [ending.record for ending in endings if ending.is_last]
    return pack_record(
        bulks=[(e.record.stream, e.output_ids.tolist()) for e in endings if e.output_ids is not None],
        finishes=[record for record in ended if isinstance(record, Finish)],
        failures=[record for record in ended if isinstance(record, Failure)],
        embeddings=[
            Embedding(e.record.stream, e.embedding_offset, array("f", e.embedding.tobytes()))
            for e in endings
            if e.embedding is not None
        ],
        attachments=[Attachment(e.record.stream, e.attachment) for e in endings if e.attachment is not None],
    )
