"""The slowest requests of the last minute, with what each stage took, for `tokenfleet top`.

A request that is not among them costs one comparison. Fields are those of the log line: counts and times, never text.
"""

import heapq
import time
from typing import Any

import msgspec

from ipc.notes import MAX_NOTES_BYTES, NotesWriter

KEPT = 8
WINDOW_S = 60.0


class SlowRequests:
    def __init__(self, page: memoryview) -> None:
        self._notes = NotesWriter(page)
        self._heap: list[tuple[float, float, dict[str, Any]]] = []  # duration, end on CLOCK_MONOTONIC, fields
        self._has_changed = True
        self.floor_s = 0.0
        """Only longer requests are of interest."""

    def offer(self, duration_s: float, fields: dict[str, Any]) -> None:
        entry = (duration_s, time.monotonic(), fields)
        if len(self._heap) < KEPT:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)
        self._set_floor()
        self._has_changed = True

    def flush(self) -> None:
        """Forget what is too old and show the rest, if anything has changed."""
        oldest_s = time.monotonic() - WINDOW_S
        young = [entry for entry in self._heap if entry[1] >= oldest_s]
        if len(young) < len(self._heap):
            heapq.heapify(young)
            self._heap, self._has_changed = young, True
            self._set_floor()
        if self._has_changed:
            self._has_changed = False
            self._notes.write(self._encoded())

    def _set_floor(self) -> None:
        self.floor_s = self._heap[0][0] if len(self._heap) == KEPT else 0.0

    def _encoded(self) -> bytes:
        slowest_first = [fields for _, _, fields in sorted(self._heap, key=lambda entry: -entry[0])]
        text = msgspec.json.encode(slowest_first)
        while len(text) > MAX_NOTES_BYTES:
            slowest_first.pop()
            text = msgspec.json.encode(slowest_first)
        return text
