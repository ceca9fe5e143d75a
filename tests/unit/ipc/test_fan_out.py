"""Who still owes an answer to what an operator has said."""

from ipc.fan_out import FanOut
from ipc.messages import Answered, EngineAnswer


def answer(engine: int, ticket: int = 7) -> EngineAnswer:
    return EngineAnswer(engine=engine, ticket=ticket, count=engine + 1)


def test_the_last_engine_completes_the_answer() -> None:
    fan_out = FanOut()

    assert fan_out.ask(7, (0, 1)) is None
    assert fan_out.take(answer(1)) is None
    assert fan_out.take(answer(0)) == Answered(ticket=7, answers=(answer(1), answer(0)))


def test_without_engines_it_is_complete_at_once() -> None:
    assert FanOut().ask(7, ()) == Answered(ticket=7)


def test_an_engine_that_is_lost_owes_nothing() -> None:
    fan_out = FanOut()
    fan_out.ask(7, (0, 1))
    fan_out.ask(8, (1,))
    fan_out.take(answer(0))

    assert fan_out.lose(1) == [Answered(ticket=7, answers=(answer(0),)), Answered(ticket=8)]
    assert fan_out.lose(1) == []


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    fan_out = FanOut()
    fan_out.ask(7, (0, 1))
    fan_out.take(answer(0))

    assert fan_out.take(answer(0)) is None, "twice the same engine"
    assert fan_out.take(answer(0, ticket=9)) is None, "of an operator who is gone"
