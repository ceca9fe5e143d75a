"""Metrics of one process in shared memory: one writer, readers anywhere, values survive the writer's death.

offset   size    field      meaning
     0      8    magic      b"TFMETR02": the last two digits are the layout version
     8      8    described  bytes of the description area in use; stored last, publishes the lines before it
    64 131008    lines      JSON lines, one per series: kind, name, help, labels, buckets, combine, first value slot
131072 376832    values     f64 slots: one per counter or gauge; per summary the count, then the sum; per histogram one
                            per bucket, then +Inf, then the sum
507904  16384    notes      see ipc.notes: what is not a number (the slowest requests of a worker)

The page describes itself, so that any process can read it without importing the role that writes it. Series are
only ever appended: labels that turn up at run time become new lines. A counter bump is one load and one store of eight
bytes. Counters and histograms outlive their process; gauges are cleared when it is reaped, and by who takes the page over.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from ipc.errors import IpcError, LayoutMismatch
from ipc.segment import Segment

MAGIC = b"TFMETR02"
PAGE_BYTES = 1 << 19  # sparse: untouched pages cost nothing
_LINES_AT = 64
_VALUES_AT = 1 << 17
NOTES_AT = PAGE_BYTES - (1 << 14)

Labels = tuple[tuple[str, str], ...]


class Instrument(Struct, frozen=True):
    """One metric family of a role. Counter names stand without `_total`, which the exposition appends."""

    kind: Literal["counter", "gauge", "histogram", "summary"]
    name: str
    help: str
    labels: Labels = ()  # constant labels, joined with those given at the use
    buckets: tuple[float, ...] = ()  # upper bounds without +Inf, ascending; histograms only
    combine: Literal["sum", "max"] = "sum"  # how gauges of several processes become one series


class Series(Struct, frozen=True):
    """One line of the description area."""

    instrument: Instrument
    labels: Labels  # all labels, sorted by name
    slot: int

    @property
    def num_slots(self) -> int:
        if self.instrument.kind == "histogram":
            return len(self.instrument.buckets) + 2
        return 2 if self.instrument.kind == "summary" else 1


class Counter:
    def __init__(self, values: "memoryview[float]", slot: int) -> None:
        self._values, self._slot = values, slot

    @property
    def value(self) -> float:
        return self._values[self._slot]

    def inc(self, amount: float = 1.0) -> None:
        self._values[self._slot] += amount


class Tally:
    """A counter that follows a total somebody else counts: `grow_to` from a timer, nothing on the hot path."""

    def __init__(self, counter: Counter, total: float = 0.0) -> None:
        """`total` is where the other count stands now: what was before is not ours, or is on the page already."""
        self._counter, self._seen = counter, total

    def grow_to(self, total: float) -> None:
        if total != self._seen:
            self._counter.inc(total - self._seen)
            self._seen = total


class Gauge:
    def __init__(self, values: "memoryview[float]", slot: int) -> None:
        self._values, self._slot = values, slot

    def set(self, value: float) -> None:
        self._values[self._slot] = value


class Summary:
    """Count and sum, no quantiles: what prometheus_client calls a summary."""

    def __init__(self, values: "memoryview[float]", slot: int) -> None:
        self._values, self._slot = values, slot

    def observe(self, value: float) -> None:
        self._values[self._slot] += 1.0
        self._values[self._slot + 1] += value


class Histogram:
    def __init__(self, values: "memoryview[float]", slot: int, buckets: tuple[float, ...]) -> None:
        self._values, self._slot, self._buckets = values, slot, buckets
        self._sum_slot = slot + len(buckets) + 1

    @property
    def count(self) -> float:
        """Observations so far. Adds the buckets up: not for hot paths."""
        return sum(self._values[self._slot : self._sum_slot])

    def observe(self, value: float) -> None:
        self._values[self._slot + bisect_left(self._buckets, value)] += 1.0
        self._values[self._sum_slot] += value

    def observe_many(self, value: float, times: int) -> None:
        self._values[self._slot + bisect_left(self._buckets, value)] += times
        self._values[self._sum_slot] += value * times


def create_metrics_segment(name: str) -> Segment:
    segment = Segment.create(f"tokenfleet-metrics-{name}", PAGE_BYTES)
    segment.view[:8] = MAGIC
    return segment


class MetricsWriter:
    """The writing side. Look an instrument up once and keep the handle: the look-up is slow, the bump is not."""

    def __init__(self, view: memoryview, instruments: Iterable[Instrument]) -> None:
        self._view = view
        self._values = view[_VALUES_AT:NOTES_AT].cast("d")
        self._families = {instrument.name: instrument for instrument in instruments}
        self._series = {(s.instrument.name, s.labels): s for s in read_series(view)}
        self._next_slot = max((s.slot + s.num_slots for s in self._series.values()), default=0)
        clear_gauges(view)

    def counter(self, name: str, **labels: str) -> Counter:
        return Counter(self._values, self._find("counter", name, labels).slot)

    def gauge(self, name: str, **labels: str) -> Gauge:
        return Gauge(self._values, self._find("gauge", name, labels).slot)

    def histogram(self, name: str, **labels: str) -> Histogram:
        series = self._find("histogram", name, labels)
        return Histogram(self._values, series.slot, series.instrument.buckets)

    def summary(self, name: str, **labels: str) -> Summary:
        return Summary(self._values, self._find("summary", name, labels).slot)

    def _find(self, kind: str, name: str, labels: dict[str, str]) -> Series:
        instrument = self._families[name]
        if instrument.kind != kind:
            raise TypeError(f"{name} is a {instrument.kind}, not a {kind}")
        all_labels = tuple(sorted({**dict(instrument.labels), **labels}.items()))
        series = self._series.get((name, all_labels))
        if series is None:
            series = Series(instrument, all_labels, self._next_slot)
            self._append(series)
        return series

    def _append(self, series: Series) -> None:
        line = msgspec.json.encode(series) + b"\n"
        used = int.from_bytes(self._view[8:16], "little")
        start, end = _LINES_AT + used, _LINES_AT + used + len(line)
        if end > _VALUES_AT or series.slot + series.num_slots > len(self._values):
            raise IpcError(f"metrics page is full: described={used} slots={series.slot}")
        self._view[start:end] = line
        self._view[8:16].cast("Q")[0] = used + len(line)  # publishes the line; pairs with the load in read_series
        self._series[series.instrument.name, series.labels] = series
        self._next_slot = series.slot + series.num_slots


_series_decoder = msgspec.json.Decoder(Series)


def read_series(view: memoryview) -> list[Series]:
    """Every series described so far. Raises LayoutMismatch."""
    if bytes(view[:8]) != MAGIC:
        raise LayoutMismatch(f"metrics page of layout {bytes(view[:8])!r}, this process speaks {MAGIC!r}")
    described = int.from_bytes(view[8:16], "little")  # pairs with the store in MetricsWriter._append
    return _series_decoder.decode_lines(view[_LINES_AT : _LINES_AT + described])


def clear_gauges(view: memoryview) -> None:
    """For a page without a writer: what its process had, it has no more."""
    values = view[_VALUES_AT:NOTES_AT].cast("d")
    for series in read_series(view):
        if series.instrument.kind == "gauge":
            values[series.slot] = 0.0


class MetricsReader:
    """One page as seen by an exporter; parses a description line once."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._values: memoryview[float] = view[_VALUES_AT:NOTES_AT].cast("d")
        self._described = b""
        self._series: list[Series] = []

    @property
    def has_changed(self) -> bool:
        """Whether there are series that `series` has not shown yet."""
        return self._view[8:16] != self._described

    def series(self) -> list[Series]:
        if self.has_changed:
            described = bytes(self._view[8:16])  # before the lines: one that is added meanwhile shows next time
            self._series = read_series(self._view)
            self._described = described
        return self._series

    def slots(self, series: Series) -> "memoryview[float]":
        """The series' values, live."""
        return self._values[series.slot : series.slot + series.num_slots]
