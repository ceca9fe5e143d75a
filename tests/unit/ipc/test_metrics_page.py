"""Metrics pages: self-description, survival of the writer, aggregation into one text."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipc.errors import IpcError, LayoutMismatch
from ipc.exposition import Exposition
from ipc.metrics_page import Instrument, MetricsWriter, Tally, create_metrics_segment, read_series

INSTRUMENTS = (
    Instrument("counter", "vllm:prompt_tokens", "Prompt tokens.", (("model_name", "m"),)),
    Instrument("counter", "http_requests", "Requests."),
    Instrument("gauge", "vllm:num_requests_running", "Running.", (("model_name", "m"),)),
    Instrument("gauge", "tokenfleet:oldest_s", "Oldest.", combine="max"),
    Instrument("histogram", "vllm:time_to_first_token_seconds", "TTFT.", (("model_name", "m"),), (0.1, 1.0)),
)


def samples(*views: memoryview) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(Exposition(views).text().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_values_of_all_pages_are_one_series_each() -> None:
    pages = [create_metrics_segment(str(n)).view for n in range(2)]
    for number, page in enumerate(pages, start=1):
        writer = MetricsWriter(page, INSTRUMENTS)
        writer.counter("vllm:prompt_tokens").inc(10 * number)
        writer.gauge("vllm:num_requests_running").set(number)
        writer.gauge("tokenfleet:oldest_s").set(number)
        writer.histogram("vllm:time_to_first_token_seconds").observe(0.5 * number)

    text = samples(*pages)

    model = ("model_name", "m")
    assert text["vllm:prompt_tokens_total", (model,)] == 30
    assert text["vllm:num_requests_running", (model,)] == 3
    assert text["tokenfleet:oldest_s", ()] == 2
    assert text["vllm:time_to_first_token_seconds_bucket", (("le", "0.1"), model)] == 0
    assert text["vllm:time_to_first_token_seconds_bucket", (("le", "1.0"), model)] == 2
    assert text["vllm:time_to_first_token_seconds_count", (model,)] == 2
    assert text["vllm:time_to_first_token_seconds_sum", (model,)] == 1.5


def test_bucket_bounds_are_inclusive() -> None:
    page = create_metrics_segment("x").view
    histogram = MetricsWriter(page, INSTRUMENTS).histogram("vllm:time_to_first_token_seconds")

    histogram.observe(0.1)
    histogram.observe_many(1.0001, 3)

    text = samples(page)
    assert text["vllm:time_to_first_token_seconds_bucket", (("le", "0.1"), ("model_name", "m"))] == 1
    assert text["vllm:time_to_first_token_seconds_bucket", (("le", "+Inf"), ("model_name", "m"))] == 4


def test_counters_survive_their_process_and_gauges_do_not() -> None:
    page = create_metrics_segment("x").view
    dead = MetricsWriter(page, INSTRUMENTS)
    dead.counter("vllm:prompt_tokens").inc(5)
    dead.gauge("vllm:num_requests_running").set(7)

    successor = MetricsWriter(page, INSTRUMENTS)
    successor.counter("vllm:prompt_tokens").inc(1)

    text = samples(page)
    assert text["vllm:prompt_tokens_total", (("model_name", "m"),)] == 6
    assert text["vllm:num_requests_running", (("model_name", "m"),)] == 0


def test_labels_that_turn_up_later_become_series_of_their_own() -> None:
    page = create_metrics_segment("x").view
    writer = MetricsWriter(page, INSTRUMENTS)
    exposition = Exposition([page])
    exposition.text()

    for status, times in (("200", 2), ("503", 1), ("200", 1)):
        writer.counter("http_requests", status=status).inc(times)

    text = samples(page)
    assert text["http_requests_total", (("status", "200"),)] == 3
    assert text["http_requests_total", (("status", "503"),)] == 1
    assert len(read_series(page)) == 2


def test_text_is_escaped_as_the_format_wants_it() -> None:
    page = create_metrics_segment("x").view
    instrument = Instrument("gauge", "tokenfleet:odd", 'Half of 100 % in a "file"\nof C:\\.')
    MetricsWriter(page, [instrument]).gauge("tokenfleet:odd", path='C:\\new "50 %"\n').set(1.5)

    families = list(text_string_to_metric_families(Exposition([page]).text().decode()))

    assert families[0].documentation == instrument.help
    assert [(sample.labels, sample.value) for sample in families[0].samples] == [({"path": 'C:\\new "50 %"\n'}, 1.5)]


def test_a_summary_is_its_count_and_its_sum() -> None:
    page = create_metrics_segment("x").view
    summary = MetricsWriter(page, [Instrument("summary", "http_request_size_bytes", "Sizes.")]).summary(
        "http_request_size_bytes", handler="/"
    )

    summary.observe(100)
    summary.observe(50)

    text = samples(page)
    assert text["http_request_size_bytes_count", (("handler", "/"),)] == 2
    assert text["http_request_size_bytes_sum", (("handler", "/"),)] == 150


def test_a_tally_adds_what_another_count_grew_by_since_it_began() -> None:
    page = create_metrics_segment("x").view
    counter = MetricsWriter(page, INSTRUMENTS).counter("http_requests")
    counter.inc(7)  # of the process before
    tally = Tally(counter, 100)

    for total in (100, 103, 103, 110):
        tally.grow_to(total)

    assert counter.value == 17


def test_a_full_page_says_so_and_keeps_what_it_has() -> None:
    page = create_metrics_segment("x").view
    writer = MetricsWriter(page, INSTRUMENTS)

    with pytest.raises(IpcError, match="full"):
        for number in range(10_000):
            writer.counter("http_requests", path=f"/{number}").inc()

    assert samples(page)["http_requests_total", (("path", "/0"),)] == 1


def test_a_page_of_another_layout_is_refused() -> None:
    page = create_metrics_segment("x").view
    page[7:8] = b"9"

    with pytest.raises(LayoutMismatch):
        MetricsWriter(page, INSTRUMENTS)


def test_kind_of_an_instrument_is_checked() -> None:
    writer = MetricsWriter(create_metrics_segment("x").view, INSTRUMENTS)

    with pytest.raises(TypeError, match="is a counter"):
        writer.gauge("vllm:prompt_tokens")
