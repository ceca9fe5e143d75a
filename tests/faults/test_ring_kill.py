"""Writer and reader processes killed at random instructions: what is read is what was published, in order, and for whom."""

import os
import random
import signal
import time

from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ipc.segment import Segment

CAPACITY = 1 << 14
# Kills of each side; `make ring-kills` asks for more.
ROUNDS = int(os.environ.get("RING_KILL_ROUNDS", "200"))


def spawn(work: "object", *args: object) -> int:
    """Fork a child that runs `work(*args)` until it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)  # type: ignore[operator]
        finally:
            os._exit(1)
    return pid


def write_forever(view: memoryview, seed: int) -> None:
    """Each payload says its own length and start, so that the reader can tell a torn one."""
    writer = RingWriter(view)
    rng = random.Random(seed)
    while True:
        words = rng.randrange(1, 200)
        writer.try_publish(words.to_bytes(4, "little") * words, 1)


def read_forever(view: memoryview, generation: int, verdict: memoryview) -> None:
    """Each payload says for whom it is, then its number, then the same again. `verdict`: records read, records wrong."""
    reader = RingReader(view, generation)
    expected = None
    while True:
        for payload in reader.poll():
            words = payload.cast("Q").tolist()
            number = words[1]
            is_whole = words == [generation, number] * (len(words) // 2)
            verdict[0] += 1
            verdict[1] += not (is_whole and expected in (None, number))
            expected = number + 1
        reader.release()


class KillTime:
    """In 0.5 to 4 ms; in every second round counted from when the process is at work, which on a busy machine takes its time.
    To be killed before that is also a test."""

    def __init__(self, draw: random.Random, round_number: int) -> None:
        self._draw, self._awaits_work = draw, round_number % 2 == 1
        self._set()

    def has_come(self, *, is_at_work: bool) -> bool:
        if self._awaits_work and is_at_work:
            self._awaits_work = False
            self._set()
        return not self._awaits_work and time.monotonic() >= self._at_s

    def _set(self) -> None:
        self._at_s = time.monotonic() + self._draw.uniform(0.0005, 0.004)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_killed_writers_never_leave_a_torn_record() -> None:
    segment = Segment.create("test-ring", ring_segment_bytes(CAPACITY))
    format_ring(segment.view, CAPACITY)
    reader = RingReader(segment.view, 1)
    num_read = 0

    for seed in range(ROUNDS):
        pid = spawn(write_forever, segment.view, seed)
        num_before, kill_time = num_read, KillTime(random.Random(seed), seed)
        while not kill_time.has_come(is_at_work=num_read > num_before):
            num_read += consume(reader)
        kill(pid)
        num_read += consume(reader)

    assert num_read > ROUNDS // 2


def test_killed_readers_never_stop_the_writer_and_their_successors_read_what_is_theirs_in_order() -> None:
    segment, result = Segment.create("test-ring", ring_segment_bytes(CAPACITY)), Segment.create("verdict", 16)
    format_ring(segment.view, CAPACITY)
    writer, verdict = RingWriter(segment.view), result.view.cast("Q")
    number = 0

    for generation in range(1, ROUNDS + 1):
        pid, draw, num_before = (
            spawn(read_forever, segment.view, generation, verdict),
            random.Random(generation),
            verdict[0],
        )
        kill_time = KillTime(draw, generation)
        while not kill_time.has_come(is_at_work=verdict[0] > num_before):
            reader_generation = writer.reader_generation
            payload = b"".join(word.to_bytes(8, "little") for word in (reader_generation, number))
            number += writer.try_publish(payload * draw.randrange(1, 50), reader_generation)
        kill(pid)

    assert verdict[1] == 0 and verdict[0] > ROUNDS // 2
    reader = RingReader(segment.view, ROUNDS + 1)
    assert writer.try_publish(b"alive", ROUNDS + 1)
    assert [bytes(payload) for payload in reader.poll()] == [b"alive"]


def consume(reader: RingReader) -> int:
    payloads = reader.poll()
    for payload in payloads:
        words = int.from_bytes(payload[:4], "little")
        assert bytes(payload) == words.to_bytes(4, "little") * words
    reader.release()
    return len(payloads)
