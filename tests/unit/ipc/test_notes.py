"""Notes: the last text or nothing, never half of one."""

import threading
import time

from ipc.metrics_page import create_metrics_segment
from ipc.notes import MAX_NOTES_BYTES, NotesWriter, read_notes


def test_the_last_text_is_read_and_an_unwritten_one_is_empty() -> None:
    page = create_metrics_segment("x").view
    assert read_notes(page) == b""
    writer = NotesWriter(page)

    for text in (b"first and longer", b"second", b"x" * MAX_NOTES_BYTES):
        writer.write(text)

        assert read_notes(page) == text


def test_a_writer_that_died_in_the_middle_leaves_nothing_and_its_successor_writes_again() -> None:
    page = create_metrics_segment("x").view
    dead = NotesWriter(page)
    dead.write(b"whole")
    dead._words[0] |= 1  # killed after its first store

    assert read_notes(page) == b""
    NotesWriter(page).write(b"of the successor")
    assert read_notes(page) == b"of the successor"


def test_no_reader_sees_a_mixture() -> None:
    page = create_metrics_segment("x").view
    texts = [bytes([letter]) * size for letter, size in ((65, 9000), (66, 50), (67, 16000))]
    should_stop = threading.Event()

    def write() -> None:
        writer = NotesWriter(page)
        while not should_stop.is_set():
            for text in texts:
                writer.write(text)

    thread = threading.Thread(target=write)
    thread.start()
    seen = {b""}
    deadline_s = time.monotonic() + 20
    while len(seen) <= len(texts) and time.monotonic() < deadline_s:
        seen.update(read_notes(page) for _ in range(500))
    should_stop.set()
    thread.join()

    assert seen <= {b"", *texts}
    assert len(seen) > 2
