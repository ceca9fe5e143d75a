"""One /metrics for the whole fleet: every process's page, aggregated, in Prometheus text format 0.0.4.

Any process may answer a scrape. Always 0.0.4, whatever the Accept header says: under OpenMetrics, prometheus_client
0.23 and later write `vllm_` for `vllm:` (client_python issue 1177), and dashboards go silently empty. One series per
metric and label set over the fleet, because endpoint pickers read only the first series of a gauge.

Endpoint pickers scrape twenty times a second, so a scrape formats nothing but numbers: everything else of the text is
one ready-made template, made anew only when a page describes a new series.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from ipc.metrics_page import Instrument, Labels, MetricsReader

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_AGE_S = 0.05  # 20 scrapes a second per reader cost no more than one rendering


class Exposition:
    """Renders the pages it was given; a rendering is kept for MAX_AGE_S."""

    def __init__(self, views: Iterable[memoryview]) -> None:
        self._readers = [MetricsReader(view) for view in views]
        self._template = ""
        self._rows: list[Row] = []
        self._text = b""
        self._rendered_at_s = 0.0

    def text(self) -> bytes:
        now_s = time.monotonic()
        if now_s - self._rendered_at_s > MAX_AGE_S:
            self._text = self.render()
            self._rendered_at_s = now_s
        return self._text

    def render(self) -> bytes:
        """The text as it is now, whatever `text` keeps."""
        if any(reader.has_changed for reader in self._readers):
            self._rows = _rows_of(self._readers)
            self._template = _template_of(self._rows)
        values: list[float] = []
        for row in self._rows:
            values += row.values()
        return (self._template % tuple(values)).encode()


class Row:
    """One series of the text: where its values stand, in one page or in several."""

    __slots__ = ("_combine", "_sources", "instrument", "labels")

    def __init__(self, instrument: Instrument, labels: Labels) -> None:
        self.instrument, self.labels = instrument, labels
        self._sources: list[memoryview[float]] = []
        is_max = instrument.kind == "gauge" and instrument.combine == "max"
        self._combine: Callable[[Iterable[float]], float] = max if is_max else math.fsum

    def add(self, source: "memoryview[float]") -> None:
        self._sources.append(source)

    def values(self) -> Iterable[float]:
        """In the order of the lines of `lines`."""
        totals: Sequence[float]
        if len(self._sources) == 1:
            totals = self._sources[0].tolist()
        else:
            columns: Iterable[tuple[float, ...]] = zip(*[source.tolist() for source in self._sources], strict=True)
            totals = [self._combine(column) for column in columns]
        if self.instrument.kind != "histogram":
            return totals
        counts = list(accumulate(totals[:-1]))
        return (*counts, counts[-1], totals[-1])

    def lines(self) -> list[str]:
        """With one %r each for a value."""
        name, kind = self.instrument.name, self.instrument.kind
        if kind == "counter":
            return [_line(f"{name}_total", self.labels)]
        if kind == "gauge":
            return [_line(name, self.labels)]
        ends = [_line(f"{name}_count", self.labels), _line(f"{name}_sum", self.labels)]
        bounds = [*(repr(float(bound)) for bound in self.instrument.buckets), "+Inf"] if kind == "histogram" else []
        return [*(_line(f"{name}_bucket", (*self.labels, ("le", bound))) for bound in bounds), *ends]


def _rows_of(readers: Sequence[MetricsReader]) -> list[Row]:
    """The series of one metric stand together, in the order in which the metrics turned up."""
    families: dict[str, dict[Labels, Row]] = {}
    for reader in readers:
        for series in reader.series():
            rows = families.setdefault(series.instrument.name, {})
            row = rows.get(series.labels)
            if row is None:
                row = rows[series.labels] = Row(series.instrument, series.labels)
            row.add(reader.slots(series))
    return [row for rows in families.values() for row in rows.values()]


def _template_of(rows: Sequence[Row]) -> str:
    lines: list[str] = []
    family = ""
    for row in rows:
        instrument = row.instrument
        if instrument.name != family:
            family = instrument.name
            shown = f"{family}_total" if instrument.kind == "counter" else family
            lines.append(f"# HELP {shown} {_escaped(instrument.help)}".replace("%", "%%"))
            lines.append(f"# TYPE {shown} {instrument.kind}".replace("%", "%%"))
        lines += row.lines()
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, labels: Labels) -> str:
    pairs = ",".join(f'{key}="{_escaped(value, quote=True)}"' for key, value in labels)
    head = f"{name}{{{pairs}}}" if pairs else name
    return head.replace("%", "%%") + " %r"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
