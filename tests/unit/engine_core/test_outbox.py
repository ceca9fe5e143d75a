"""Outbox: what a worker reads is what the step gave, on real rings."""

from array import array
from collections.abc import Sequence

import numpy as np
import pytest

from engine_core.outbox import Outbox, TokenLane
from engine_core.step_output import NO_TOKENS, Ending, SampledTokens
from ipc.record import NO_STOP_TOKEN, Failure, FailureCode, Finish, FinishCode, Scored, StepRecord, unpack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes


class CountingBell:
    def __init__(self) -> None:
        self.num_rings = 0

    def ring(self) -> None:
        self.num_rings += 1


class Rig:
    def __init__(self, *, num_workers: int = 1, ring_bytes: int = 4096, max_overflow_bytes: int = 1 << 20) -> None:
        self.views = [memoryview(bytearray(ring_segment_bytes(ring_bytes))) for _ in range(num_workers)]
        for view in self.views:
            format_ring(view, ring_bytes)
        self.readers = [RingReader(view, 1) for view in self.views]
        self.bells = [CountingBell() for _ in self.views]
        self.outbox = Outbox([RingWriter(view) for view in self.views], self.bells, max_overflow_bytes)

    def read_all(self, slot: int = 0) -> list[StepRecord]:
        """Also what waits for room in the ring."""
        records = self.read(slot)
        while self.outbox.has_overflow:
            self.outbox.publish(NO_TOKENS, [])
            records += self.read(slot)
        return records

    def read(self, slot: int = 0) -> list[StepRecord]:
        records = [unpack_record(payload) for payload in self.readers[slot].poll()]
        self.readers[slot].release()
        return records


def tokens_of(*entries: tuple[int, int, int]) -> SampledTokens:
    """(slot, stream number, token id) each."""
    slots, numbers, token_ids = zip(*entries, strict=True)
    return SampledTokens(np.array(slots, np.int32), np.array(numbers, np.uint32), np.array(token_ids, np.int32))


def finish(number: int) -> Finish:
    return Finish(number, FinishCode.LENGTH, 3, 0, 5, NO_STOP_TOKEN, 0, 1, 2, 3)


def bulk(number: int, num_tokens: int) -> Ending:
    return Ending(0, finish(number), np.arange(num_tokens, dtype=np.int32))


def test_each_lane_goes_to_its_worker_and_is_empty_then() -> None:
    rig = Rig(num_workers=3)
    lanes = [TokenLane() for _ in range(rig.outbox.num_slots)]
    lanes[0].put(7, [1, 2])
    lanes[2].put(9, [3])

    rig.outbox.publish_lanes(lanes, [Ending(2, finish(9))])
    rig.outbox.publish_lanes(lanes, [])

    [first], [third] = rig.read(0), rig.read(2)
    assert (first.streams, first.tokens, first.finishes) == ([7, 7], [1, 2], [])
    assert (third.streams, third.tokens, third.finishes) == ([9], [3], [finish(9)])
    assert rig.read(1) == [] and [bell.num_rings for bell in rig.bells] == [1, 0, 1]


@pytest.mark.parametrize("size", [1, 64, 5000])
def test_an_embedding_arrives_whole_before_its_finish_however_many_records_it_takes(size: int) -> None:
    rig = Rig()
    vector = np.linspace(0, 1, size, dtype=np.float32)
    other = bulk(8, 3)

    rig.outbox.publish(NO_TOKENS, [Ending(0, finish(3), embedding=vector), other])

    found = array("f")
    for record in rig.read_all():
        for piece in record.embeddings:
            assert (piece.stream, piece.offset) == (3, len(found))
            found.extend(piece.values)
        if any(end.stream == 3 for end in record.finishes):
            assert len(found) == size
    assert found.tolist() == vector.tolist()


def bulks_joined(records: Sequence[StepRecord]) -> dict[int, list[int]]:
    joined: dict[int, list[int]] = {}
    for record in records:
        for number, token_ids in record.bulks:
            joined.setdefault(number, []).extend(token_ids)
    return joined


@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_worker_gets_its_tokens_in_order_as_one_record(num_workers: int) -> None:
    rig = Rig(num_workers=num_workers)
    entries = [(n % num_workers, 2**32 - 1 - n, n) for n in range(20)]

    rig.outbox.publish(tokens_of(*entries), [])

    for slot in range(num_workers):
        (record,) = rig.read(slot)
        mine = [(number, token_id) for worker, number, token_id in entries if worker == slot]
        assert list(zip(record.streams, record.tokens, strict=True)) == mine
        assert rig.bells[slot].num_rings == 1


def test_tokens_and_ends_of_one_step_share_a_record() -> None:
    rig = Rig()
    failure = Failure(4, FailureCode.INTERNAL, "nän")

    rig.outbox.publish(tokens_of((0, 1, 10)), [Ending(0, finish(1)), bulk(2, 3), Ending(0, failure)])

    (record,) = rig.read()
    assert record == StepRecord([1], [10], [(2, [0, 1, 2])], [finish(1), finish(2)], [failure], [], [], [])
    assert rig.bells[0].num_rings == 1


def test_scored_tokens_go_to_their_worker_in_order_before_the_ends_of_the_step() -> None:
    rig = Rig(num_workers=2, ring_bytes=1 << 15)
    entries = [
        (number % 2, Scored(number, number, False, 1, -0.5, list(range(20)), [-1.0] * 20)) for number in range(200)
    ]
    nobody = np.zeros(0, np.int32)
    tokens = SampledTokens(nobody, nobody.astype(np.uint32), nobody, tuple(entries))

    rig.outbox.publish(tokens, [Ending(1, finish(1))])

    for slot in range(2):
        records = rig.read(slot)
        assert len(records) > 1
        assert [entry for record in records for entry in record.scored] == [e for s, e in entries if s == slot]
        assert [len(record.finishes) for record in records][-1] == slot
        assert all(not record.finishes for record in records[:-1])


def test_a_worker_without_output_is_not_woken() -> None:
    rig = Rig(num_workers=2)

    rig.outbox.publish(tokens_of((1, 1, 10)), [])
    rig.outbox.publish(NO_TOKENS, [])

    assert [bell.num_rings for bell in rig.bells] == [0, 1]
    assert rig.read(0) == []


def test_a_bulk_larger_than_a_record_arrives_whole_before_its_finish() -> None:
    rig = Rig()
    endings = [bulk(1, 1200), bulk(2, 700), Ending(0, finish(3))]
    records: list[StepRecord] = []

    rig.outbox.publish(tokens_of((0, 3, 5)), endings)
    while rig.outbox.has_overflow:
        records += rig.read()
        rig.outbox.publish(NO_TOKENS, [])
    records += rig.read()

    assert bulks_joined(records) == {1: list(range(1200)), 2: list(range(700))}
    assert [end for record in records for end in record.finishes] == [finish(1), finish(2), finish(3)]
    seen: set[int] = set()
    for record in records:
        assert not seen & {number for number, _ in record.bulks}, "a piece came after the finish"
        seen |= {end.stream for end in record.finishes}


def test_more_tokens_than_a_record_holds_are_split() -> None:
    rig = Rig(ring_bytes=16384)
    entries = [(0, n, n) for n in range(1500)]

    rig.outbox.publish(tokens_of(*entries), [Ending(0, finish(9))])

    records = rig.read()
    assert [number for record in records for number in record.streams] == list(range(1500))
    assert records[-1].finishes == [finish(9)]
    assert rig.bells[0].num_rings == 1


def test_a_full_ring_keeps_everything_in_order_until_the_worker_reads() -> None:
    rig = Rig()
    for n in range(200):
        rig.outbox.publish(tokens_of((0, n, n)), [])
    assert rig.outbox.has_overflow and rig.outbox.stalled_slots == []

    seen: list[int] = []
    for _ in range(50):
        seen += [number for record in rig.read() for number in record.streams]
        rig.outbox.publish(NO_TOKENS, [])

    assert seen == list(range(200))
    assert not rig.outbox.has_overflow


def test_a_small_record_does_not_overtake_a_large_one_that_waits() -> None:
    rig = Rig()
    rig.outbox.publish(NO_TOKENS, [bulk(1, 400)])
    rig.outbox.publish(NO_TOKENS, [bulk(2, 400)])
    rig.outbox.publish(NO_TOKENS, [bulk(3, 400)])
    assert rig.outbox.has_overflow

    rig.outbox.publish(tokens_of((0, 4, 5)), [])

    assert [record.streams for record in rig.read()] == [[], []]
    rig.outbox.publish(NO_TOKENS, [])
    assert [(record.streams, len(record.bulks)) for record in rig.read()] == [([], 1), ([4], 0)]


def test_a_full_ring_delays_nobody_else() -> None:
    rig = Rig(num_workers=2)

    for n in range(200):
        rig.outbox.publish(tokens_of((0, n, n), (1, n, n)), [])
        assert [record.streams for record in rig.read(1)] == [[n]]


def test_a_worker_past_its_bound_is_stalled_until_it_has_read_all() -> None:
    rig = Rig(max_overflow_bytes=1000)
    for n in range(150):
        rig.outbox.publish(tokens_of((0, n, n)), [])
    assert rig.outbox.stalled_slots == [0]
    rig.outbox.publish(NO_TOKENS, [Ending(0, Failure(1, FailureCode.OVERFLOW, "cut"))])

    records: list[StepRecord] = []
    while rig.outbox.has_overflow:
        records += rig.read()
        rig.outbox.publish(NO_TOKENS, [])
    records += rig.read()

    assert rig.outbox.stalled_slots == []
    assert [number for record in records for number in record.streams] == list(range(150))
    assert records[-1].failures == [Failure(1, FailureCode.OVERFLOW, "cut")]


def test_a_replaced_worker_gets_nothing_of_what_waited_for_the_old_one() -> None:
    rig = Rig(max_overflow_bytes=1000)
    for n in range(150):
        rig.outbox.publish(tokens_of((0, n, n)), [])

    rig.readers[0] = RingReader(rig.views[0], 2)

    assert rig.outbox.new_readers() == [(0, 2)]
    assert rig.outbox.new_readers() == []
    assert not rig.outbox.has_overflow and rig.outbox.stalled_slots == []
    rig.outbox.publish(tokens_of((0, 7, 8)), [])
    assert [record.streams for record in rig.read()] == [[7]]


def test_reader_generation_is_read_live_and_unknown_slots_have_none() -> None:
    rig = Rig(num_workers=1)
    assert rig.outbox.reader_generation(0) == 1

    RingReader(rig.views[0], 5)

    assert rig.outbox.reader_generation(0) == 5
    assert rig.outbox.reader_generation(1) is None
