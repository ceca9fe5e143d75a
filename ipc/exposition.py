"""One /metrics for the whole fleet: every process's page, aggregated, in Prometheus text format 0.0.4.

Any process may answer a scrape. Always 0.0.4, whatever the Accept header says: under OpenMetrics, prometheus_client
0.23 and later write `vllm_` for `vllm:` (client_python issue 1177), and dashboards go silently empty. One series per
metric and label set over the fleet, because endpoint pickers read only the first series of a gauge.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ipc.metrics_page import Instrument, Labels, MetricsReader

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_AGE_S = 0.05  # 20 scrapes a second per reader cost no more than one rendering


class Exposition:
    """Renders the pages it was given; a rendering is kept for MAX_AGE_S."""

    def __init__(self, views: Iterable[memoryview]) -> None:
        self._collector = _FleetCollector([MetricsReader(view) for view in views])
        self._text = b""
        self._rendered_at_s = 0.0

    def text(self) -> bytes:
        now_s = time.monotonic()
        if now_s - self._rendered_at_s > MAX_AGE_S:
            self._text = generate_latest(self._collector)
            self._rendered_at_s = now_s
        return self._text


class _FleetCollector(Collector):
    def __init__(self, readers: Sequence[MetricsReader]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[Metric]:
        families: dict[str, tuple[Instrument, dict[Labels, list[float]]]] = {}
        for reader in self._readers:
            for series, values in reader.read():
                _, rows = families.setdefault(series.instrument.name, (series.instrument, {}))
                _merge(rows, series.labels, values, series.instrument)
        for instrument, rows in families.values():
            yield _family(instrument, rows)


def _merge(rows: dict[Labels, list[float]], labels: Labels, values: list[float], instrument: Instrument) -> None:
    present = rows.get(labels)
    if present is None:
        rows[labels] = values
    elif instrument.kind == "gauge" and instrument.combine == "max":
        rows[labels] = [max(present[0], values[0])]
    else:
        rows[labels] = [a + b for a, b in zip(present, values, strict=True)]


def _family(instrument: Instrument, rows: dict[Labels, list[float]]) -> Metric:
    label_names = [name for name, _ in next(iter(rows))]
    if instrument.kind == "counter":
        counter = CounterMetricFamily(instrument.name, instrument.help, labels=label_names)
        for labels, values in rows.items():
            counter.add_metric([value for _, value in labels], values[0])
        return counter
    if instrument.kind == "gauge":
        gauge = GaugeMetricFamily(instrument.name, instrument.help, labels=label_names)
        for labels, values in rows.items():
            gauge.add_metric([value for _, value in labels], values[0])
        return gauge
    histogram = HistogramMetricFamily(instrument.name, instrument.help, labels=label_names)
    for labels, values in rows.items():
        histogram.add_metric([value for _, value in labels], _cumulative(instrument.buckets, values), values[-1])
    return histogram


def _cumulative(buckets: tuple[float, ...], values: list[float]) -> list[tuple[str, float]]:
    total = 0.0
    rows = []
    for bound, count in zip([*map(str, buckets), "+Inf"], values, strict=False):
        total += count
        rows.append((bound, total))
    return rows
