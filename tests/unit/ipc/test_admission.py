"""Admission and placement: bounds, affinity, and books that balance."""

import time

import pytest

from ipc.admission import AFFINITY_SLACK_TOKENS, Admission, EngineLoad, Refusal
from ipc.messages import make_stream_id


def make_admission(*, engines: int = 1, seqs: int = 2, queued_reqs: int = 2, queued_tokens: int = 1000) -> Admission:
    admission = Admission(max_num_seqs=seqs, max_num_queued_reqs=queued_reqs, max_num_queued_tokens=queued_tokens)
    for index in range(engines):
        admission.connect(index, 1, ())
    return admission


def test_without_engines_everything_is_refused() -> None:
    assert make_admission(engines=0).place(1, 10, 10, 0) == Refusal("no_engine", 2)


def test_requests_beyond_running_and_queued_are_refused() -> None:
    admission = make_admission(seqs=2, queued_reqs=2)

    placed = [admission.place(stream_id, 10, 10, 0) for stream_id in range(5)]

    assert [isinstance(place, EngineLoad) for place in placed] == [True] * 4 + [False]
    assert isinstance(placed[4], Refusal) and placed[4].reason == "max_num_queued_reqs"


def test_an_end_makes_room() -> None:
    admission = make_admission(seqs=1, queued_reqs=0)
    admission.place(1, 10, 10, 0)
    assert isinstance(admission.place(2, 10, 10, 0), Refusal)

    admission.start(1)
    admission.end(1)

    assert isinstance(admission.place(2, 10, 10, 0), EngineLoad)


def test_waiting_prompt_tokens_are_bounded_but_a_lone_giant_is_admitted() -> None:
    admission = make_admission(seqs=100, queued_tokens=1000)

    assert isinstance(admission.place(1, 50_000, 10, 0), EngineLoad)
    refusal = admission.place(2, 1, 10, 0)
    admission.start(1)

    assert isinstance(refusal, Refusal) and refusal.reason == "max_num_queued_tokens"
    assert isinstance(admission.place(3, 1, 10, 0), EngineLoad), "the giant runs: nothing waits"


def test_least_tokens_win() -> None:
    admission = make_admission(engines=2, seqs=100)
    admission.place(1, 900, 10, 0)

    placed = [admission.place(stream_id, 100, 10, 0) for stream_id in range(2, 6)]

    assert [place.index for place in placed if isinstance(place, EngineLoad)] == [1, 1, 1, 1]


def test_an_engine_that_does_not_start_what_it_has_gets_less() -> None:
    admission = make_admission(engines=2, seqs=100)
    admission.place(1, 300, 10, 0)
    admission.place(2, 400, 10, 0)
    admission.start(2)  # by engine 1; engine 0 has no room, with fewer tokens

    placed = admission.place(3, 100, 10, 0)

    assert isinstance(placed, EngineLoad) and placed.index == 1


def test_equal_prefixes_meet_on_one_engine_until_it_is_much_busier() -> None:
    admission = make_admission(engines=2, seqs=10_000, queued_tokens=10**9)
    first = admission.place(1, 500, 1, prefix_key=77)
    assert isinstance(first, EngineLoad)

    second = admission.place(2, 500, 1, prefix_key=77)
    admission.place(3, 4 * AFFINITY_SLACK_TOKENS, 1, prefix_key=77)
    fourth = admission.place(4, 500, 1, prefix_key=77)

    assert isinstance(second, EngineLoad) and second.index == first.index
    assert isinstance(fourth, EngineLoad) and fourth.index != first.index


def test_a_lost_engine_names_exactly_its_streams() -> None:
    admission = make_admission(engines=2, seqs=100)
    homes = {stream_id: admission.place(stream_id, 10, 10, 0) for stream_id in range(6)}
    admission.end(0)

    lost = admission.disconnect(0)

    assert sorted(lost) == [s for s, home in homes.items() if s and isinstance(home, EngineLoad) and home.index == 0]
    assert admission.disconnect(0) == []
    assert all(admission.engine_of(stream_id) is None for stream_id in lost)


def test_books_balance_after_any_order_of_start_and_end() -> None:
    admission = make_admission(seqs=100)
    for stream_id in range(4):
        admission.place(stream_id, 10, 10, 0)

    admission.end(0)  # aborted while waiting
    admission.start(1)
    admission.start(1)
    admission.end(1)
    admission.end(1)
    admission.start(99)
    admission.end(2)
    admission.end(3)

    engine = admission.engines[0]
    assert (engine.num_waiting, engine.waiting_tokens, engine.load_tokens, engine.in_flight) == (0, 0, 0, {})


def test_streams_of_a_slot_are_those_of_other_generations() -> None:
    admission = make_admission(seqs=100)
    old, new, other = make_stream_id(3, 1, 5), make_stream_id(3, 2, 1), make_stream_id(4, 1, 5)
    for stream_id in (old, new, other):
        admission.place(stream_id, 1, 1, 0)

    assert admission.streams_of_slot(3, 2) == [old]


def test_a_new_broker_counts_what_engines_run_already() -> None:
    admission = make_admission(engines=0, seqs=1, queued_reqs=0)

    admission.connect(0, 4, [make_stream_id(0, 1, 1)])

    assert isinstance(admission.place(2, 1, 1, 0), Refusal)
    admission.end(make_stream_id(0, 1, 1))
    assert isinstance(admission.place(2, 1, 1, 0), EngineLoad)


def test_a_deadline_that_the_backlog_leaves_no_time_for_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    admission = make_admission(seqs=2, queued_reqs=100)
    admission.place(0, 10, 10, 0)
    admission.start(0)
    now_s += 10.0
    admission.end(0)  # a run takes 10 s
    for stream_id in range(1, 6):
        admission.place(stream_id, 10, 10, 0)

    assert admission.place(6, 10, 10, 0, deadline_s=now_s + 19.9) == Refusal("deadline", 20)
    assert isinstance(admission.place(7, 10, 10, 0, deadline_s=now_s + 20.1), EngineLoad)
    assert isinstance(admission.place(8, 10, 10, 0), EngineLoad), "without deadline it may wait"


def test_with_a_free_place_every_deadline_that_is_not_past_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    admission = make_admission(seqs=2, queued_reqs=100)
    admission.place(0, 10, 10, 0)
    admission.start(0)
    now_s += 1000.0
    admission.end(0)

    assert isinstance(admission.place(1, 10, 10, 0, deadline_s=now_s + 0.1), EngineLoad)
    assert admission.place(2, 10, 10, 0, deadline_s=now_s - 0.1) == Refusal("deadline", 1)


def test_retry_after_is_the_backlog_at_the_pace_of_the_last_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    admission = make_admission(seqs=2, queued_reqs=4)
    admission.place(0, 10, 10, 0)
    admission.start(0)
    now_s += 3.0
    admission.end(0)
    for stream_id in range(1, 7):
        admission.place(stream_id, 10, 10, 0)

    assert admission.place(9, 10, 10, 0) == Refusal("max_num_queued_reqs", 8), "5 too many for 2 places of 3 s: 7.5 s"


def test_a_queue_that_one_key_fills_has_room_for_the_others() -> None:
    admission = make_admission(seqs=2, queued_reqs=12, queued_tokens=10**6)

    greedy = [admission.place(stream_id, 1, 1, 0, fair_key=1) for stream_id in range(30)]
    modest = [admission.place(stream_id, 1, 1, 0, fair_key=2) for stream_id in range(100, 103)]

    refused = [place for place in greedy if isinstance(place, Refusal)]
    assert {refusal.reason for refusal in refused} == {"key_share"}
    assert 7 <= 30 - len(refused) < 12
    assert all(isinstance(place, EngineLoad) for place in modest)


def test_the_books_of_a_key_balance() -> None:
    admission = make_admission(seqs=100)
    for stream_id in range(3):
        admission.place(stream_id, 10, 10, 0, fair_key=7)

    admission.start(0)
    admission.end(0)
    admission.end(1)
    assert admission.engines[0].waiting_of_key == {7: 1}
    admission.end(2)

    assert admission.engines[0].waiting_of_key == {}
