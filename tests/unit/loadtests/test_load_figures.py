"""A report has what was seen, and there is none when the load generator itself was busy."""

import pytest

from loadtests.load_figures import LoadFigures, refusal_or_none, render
from loadtests.sse_meter import StreamMeter


def answered(*arrivals_s: float, is_done: bool = True) -> StreamMeter:
    meter = StreamMeter(0.0)
    for arrival_s in arrivals_s:
        meter.on_event(b'data: {"choices":[{"text":"a"}]}', arrival_s)
    if is_done:
        meter.on_event(b"data: [DONE]", arrivals_s[-1])
    return meter


def test_a_report_has_what_was_seen() -> None:
    figures = LoadFigures()
    figures.on_answer(answered(0.1, 0.2, 0.3))
    figures.on_answer(answered(0.3, 0.4, 0.9))
    figures.on_left(answered(0.2, is_done=False))
    figures.on_failure()

    text = render("title", figures, 0.25, wall_s=2.0)

    assert "| whole answers, left, failed | 2, 1, 1 |" in text
    assert "| tokens per second | 4 |" in text  # 7 in 2 s, and halves go to the even
    assert "| TTFT p50 / p99 ms | 200.0 / 300.0 |" in text
    assert "| longest gap ms | 500.0 |" in text
    assert "| whole answer p50 / p99 ms | 300.0 / 900.0 |" in text
    assert "25% of its core" in text


def test_an_answer_that_is_not_whole_is_no_figure() -> None:
    figures = LoadFigures()

    with pytest.raises(ValueError, match="DONE"):
        figures.on_answer(answered(0.1, is_done=False))

    assert figures == LoadFigures()


def test_a_busy_load_generator_has_no_report() -> None:
    figures = LoadFigures(num_whole=5)

    assert refusal_or_none(figures, 0.70) is None
    assert "71% of its core" in (refusal_or_none(figures, 0.71) or "")


def test_without_an_answer_there_is_no_report() -> None:
    assert "3 failed" in (refusal_or_none(LoadFigures(num_failed=3), 0.1) or "")
