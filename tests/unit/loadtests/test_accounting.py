"""The cost of counting is the difference of neighbouring rounds and the price of the calls that did nothing."""

from apiserver.metrics import WorkerMetrics
from ipc.metrics_page import create_metrics_segment
from loadtests.micro.accounting import CountedNoMetrics, Rounds, no_metrics, row


def test_a_row_adds_the_calls_to_the_difference_and_judges_by_the_budget() -> None:
    rounds = Rounds(counting=[11.0, 13.0, 12.0], silent=[10.0, 10.0, 11.0])

    # median difference 1, and 4 calls of half a microsecond
    assert row("x", rounds, 4.0, 0.5, 100.0)[4:] == ["3.00", "100", "3.0%", "yes"]
    assert row("x", rounds, 4.0, 0.5, 99.0)[4:] == ["3.00", "99", "3.0%", "no"]


def test_every_call_that_counts_is_counted_and_nothing_else_happens() -> None:
    counted = CountedNoMetrics()

    counted.ttft.observe(0.1)
    counted.ended("stop").inc()
    counted.slow.flush()

    assert counted.num_calls == 3
    assert counted.slow.floor_s == float("inf")


def test_what_stands_for_metrics_takes_the_calls_of_real_ones() -> None:
    real = WorkerMetrics(create_metrics_segment("test").view, "m", 8192)

    for metrics in (real, no_metrics()):
        metrics.on_http("POST", "/", 200, 0.1, 1, 1)
        metrics.itl.observe(0.1, 2)
        metrics.on_prompt(5, 2)
        metrics.shed("deadline").inc()
        metrics.on_drained(3)
