"""The notes of a metrics page: a short text that one process rewrites now and then and others may read at any time.

offset   size  field    meaning
     0      8  version  odd while the text is being written
     8      8  length   bytes of text
    16  16368  text     JSON

A reader that sees the version change looks again (a sequence lock). A writer that was killed in the middle leaves an odd
version: its readers see nothing until a successor has written.
"""

from ipc.metrics_page import NOTES_AT, PAGE_BYTES

MAX_NOTES_BYTES = PAGE_BYTES - NOTES_AT - 16
_LOOKS = 10


class NotesWriter:
    def __init__(self, page: memoryview) -> None:
        self._text = page[NOTES_AT + 16 : PAGE_BYTES]
        self._words = page[NOTES_AT : NOTES_AT + 16].cast("Q")

    def write(self, text: bytes) -> None:
        """At most MAX_NOTES_BYTES."""
        version = self._words[0] | 1
        self._words[0] = version  # pairs with the first load in read_notes
        self._text[: len(text)] = text
        self._words[1] = len(text)
        self._words[0] = version + 1  # pairs with the second load in read_notes


def read_notes(page: memoryview) -> bytes:
    """Empty when nothing has been written, or is being written all the time."""
    words = page[NOTES_AT : NOTES_AT + 16].cast("Q")
    for _ in range(_LOOKS):
        version = words[0]
        text = bytes(page[NOTES_AT + 16 : NOTES_AT + 16 + min(words[1], MAX_NOTES_BYTES)])
        if version % 2 == 0 and words[0] == version:
            return text
    return b""
