"""The ring against its model, a bounded FIFO of byte strings, with readers and writers replaced at any point."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes

CAPACITY = 4096


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.view = memoryview(bytearray(ring_segment_bytes(CAPACITY)))
        format_ring(self.view, CAPACITY)
        self.generation = 1
        self.writer = RingWriter(self.view)
        self.reader = RingReader(self.view, self.generation)
        self.published: deque[bytes] = deque()  # not yet polled, for the living generation
        self.num_unreleased = 0

    @rule(words=st.integers(0, 500), fill=st.integers(0, 255))
    def publish(self, words: int, fill: int) -> None:
        payload = bytes([fill]) * (4 * words)
        if self.writer.try_publish(payload, self.generation):
            self.published.append(payload)
        else:
            assert self.writer.used_bytes > 0, "an empty ring refused a record that fits"

    @rule(words=st.integers(0, 500))
    def publish_for_the_dead(self, words: int) -> None:
        self.writer.try_publish(b"dead" * words, self.generation - 1)

    @rule()
    def poll(self) -> None:
        payloads = [bytes(payload) for payload in self.reader.poll()]
        assert payloads == list(self.published)
        self.num_unreleased += len(payloads)
        self.published.clear()

    @rule()
    def release(self) -> None:
        self.reader.release()
        self.num_unreleased = 0

    @rule()
    def replace_writer(self) -> None:
        self.writer = RingWriter(self.view)

    @rule()
    def replace_reader(self) -> None:
        self.generation += 1
        self.reader = RingReader(self.view, self.generation)
        self.published.clear()
        self.num_unreleased = 0

    @invariant()
    def never_holds_more_than_its_capacity(self) -> None:
        assert 0 <= self.writer.used_bytes <= CAPACITY


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestRingIsABoundedFifo = RingMachine.TestCase
