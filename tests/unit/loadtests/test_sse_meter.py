"""Times of a stream are those at which its events were handed over, and only output counts as a token."""

import re

import pytest

from loadtests.sse_meter import StreamMeter

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def content(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


def usage(num_tokens: int) -> bytes:
    return b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n' % num_tokens


def fed(*events: tuple[float, bytes], asked_at_s: float = 100.0) -> StreamMeter:
    meter = StreamMeter(asked_at_s)
    for now_s, event in events:
        meter.on_event(event, now_s)
    return meter


def test_the_first_token_is_the_first_event_with_output_and_gaps_lie_between_such_events() -> None:
    meter = fed((100.1, ROLE), (100.3, content("a")), (100.4, content("b")), (100.7, content("c")), (100.8, FINISH),
                (100.8, usage(3)), (100.9, DONE))  # fmt: skip

    assert meter.ttft_s == pytest.approx(0.3)
    assert meter.gaps_s == pytest.approx([0.1, 0.3])
    assert meter.e2e_s == pytest.approx(0.7)
    assert meter.tpot_s == pytest.approx(0.2)
    assert meter.num_tokens == 3 and meter.fault is None
    assert "".join(meter.text) == "abc"


def test_tokens_that_share_an_event_count_by_the_usage() -> None:
    meter = fed((101.0, content("a")), (102.0, content("bcd")), (102.0, usage(5)), (102.0, DONE))

    assert meter.num_tokens == 5 and meter.num_events == 2
    assert meter.tpot_s == pytest.approx(0.25)


def test_comments_and_fields_that_are_no_data_are_no_tokens() -> None:
    meter = fed((101.0, b": keep-alive\n\n"), (102.0, b'event: x\r\ndata: {"choices":[{"text":"a"}]}\r\n\r\n'))

    assert meter.ttft_s == pytest.approx(2.0) and meter.num_tokens == 1


def test_data_of_several_lines_is_one_event() -> None:
    meter = fed((101.0, b'data: {"choices":\ndata: [{"text":"a"}]}\n\n'))

    assert meter.text == ["a"] and meter.error is None


@pytest.mark.parametrize("event", [
    b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n',
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n',
])  # fmt: skip
def test_reasoning_and_calls_are_output(event: bytes) -> None:
    assert fed((101.0, event)).num_events == 1


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([content("a")], r"without \[DONE\]"),
        ([ROLE, DONE], "no token"),
        ([content("a"), b'data: {"error":{"message":"engine lost"}}\n\n', DONE], "engine lost"),
        ([b"data: <html>\n\n", DONE], "not an event"),
        ([b'data: {"choices":"none"}\n\n', DONE], "not an event"),
    ],
)
def test_an_answer_that_is_not_whole_has_a_fault(events: list[bytes], fault: str) -> None:
    meter = fed(*((101.0, event) for event in events))

    assert re.search(fault, meter.fault or "")
