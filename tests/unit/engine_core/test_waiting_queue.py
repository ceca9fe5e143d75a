"""The waiting queue: priorities that waiting improves, keys that share, plain order for everybody else."""

import numpy as np

from engine_core.sequence import Sequence, SequenceState
from engine_core.waiting_queue import OUTPUT_TOKEN_COST, WaitingQueue
from ipc.messages import SamplingParams

S = 1_000_000_000


def sequence(arrival: int, *, priority: int = 0, fair_key: int = 0, arrival_s: float = 0.0) -> Sequence:
    return Sequence(
        stream_id=arrival,
        request_id="r",
        sampling=SamplingParams(max_tokens=1),
        token_ids=np.zeros(1, np.int32),
        num_prompt_tokens=1,
        max_total_len=2,
        arrival=arrival,
        arrival_ns=int(arrival_s * S),
        priority=priority,
        fair_key=fair_key,
    )


def order_of(queue: WaitingQueue, now_s: float = 0.0, *, cost: int = 0) -> list[int]:
    """Arrivals as they leave; each is charged `cost` prompt tokens."""
    left = []
    while (head := queue.head_or_none(int(now_s * S))) is not None:
        queue.pop()
        queue.charge(head.fair_key, cost, 0)
        left.append(head.arrival)
    return left


def filled(*sequences: Sequence, ageing_s: float = 0.0) -> WaitingQueue:
    queue = WaitingQueue(ageing_s)
    for one in sequences:
        queue.push(one)
    return queue


def test_without_keys_it_is_priority_then_arrival() -> None:
    queue = filled(sequence(1), sequence(2, priority=-1), sequence(3, priority=5), sequence(4))

    assert order_of(queue) == [2, 1, 4, 3]
    assert len(queue) == 0


def test_a_preempted_sequence_comes_before_those_that_arrived_later() -> None:
    queue = filled(sequence(5), sequence(6))
    queue.push(sequence(2))

    assert order_of(queue) == [2, 5, 6]


def test_waiting_raises_a_low_priority_up_to_the_best_but_not_above() -> None:
    old = sequence(1, priority=3)
    fresh = [sequence(number, arrival_s=29.0) for number in (2, 3)]

    assert order_of(filled(old, *fresh, ageing_s=10.0), now_s=29.0) == [2, 3, 1], "one priority short of theirs"
    assert order_of(filled(old, *fresh, ageing_s=10.0), now_s=30.0) == [1, 2, 3]
    urgent = sequence(0, priority=-1, arrival_s=1000.0)
    assert order_of(filled(old, urgent, ageing_s=10.0), now_s=1000.0) == [0, 1], "equal, and the urgent arrived first"


def test_strict_priorities_never_age() -> None:
    queue = filled(sequence(1, priority=1), sequence(2, arrival_s=1e6))

    assert order_of(queue, now_s=1e6) == [2, 1]


def test_a_key_with_many_requests_takes_turns_with_one_that_has_few() -> None:
    many = [sequence(number, fair_key=1) for number in range(6)]
    few = [sequence(number, fair_key=2) for number in (10, 11)]

    assert order_of(filled(*many, *few), cost=100) == [0, 10, 1, 11, 2, 3, 4, 5]


def test_a_key_pays_for_its_output_too() -> None:
    queue = filled(*(sequence(number, fair_key=1) for number in range(4)), sequence(10, fair_key=2))
    queue.charge(2, 0, 125)

    assert OUTPUT_TOKEN_COST == 2
    assert order_of(queue, cost=100) == [0, 1, 2, 10, 3]


def test_idling_earns_no_credit() -> None:
    queue = filled(*(sequence(number, fair_key=1) for number in range(8)))
    for _ in range(4):
        queue.head_or_none(0)
        queue.pop()
        queue.charge(1, 100, 0)

    for number in (20, 21, 22):
        queue.push(sequence(number, fair_key=2))

    assert order_of(queue, cost=100) == [4, 20, 5, 21, 6, 22, 7]


def test_what_has_ended_is_never_the_head_and_compact_forgets_it() -> None:
    sequences = [sequence(number, priority=number % 2) for number in range(6)]
    queue = filled(*sequences)
    for ended in (0, 1, 4):
        sequences[ended].state = SequenceState.ENDED

    assert [one.arrival for one in queue.waiting] == [2, 3, 5]
    queue.compact()
    assert len(queue) == 3
    assert order_of(queue) == [2, 3, 5]


def test_accounts_of_keys_that_are_gone_do_not_pile_up() -> None:
    queue = WaitingQueue(0.0)
    for key in range(1, 20_000):
        queue.charge(key, 1, 1)

    assert len(queue._paid) <= 4096
