"""Words of an operator to the whole fleet, as the broker keeps them: which engines still owe their answer to which."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ipc.messages import Answered, EngineAnswer


@dataclass(slots=True)
class _Question:
    waits_for: set[int]
    answers: list[EngineAnswer] = field(default_factory=list)


class FanOut:
    """Every question ends in one Answered; an engine that is lost owes nothing any more."""

    def __init__(self) -> None:
        self._questions: dict[int, _Question] = {}  # by ticket

    def ask(self, ticket: int, engines: Iterable[int]) -> Answered | None:
        """Answered at once where there is no engine."""
        self._questions[ticket] = _Question(set(engines))
        return self._end_if_complete(ticket)

    def take(self, answer: EngineAnswer) -> Answered | None:
        """The last answer gives the result."""
        question = self._questions.get(answer.ticket)
        if question is None or answer.engine not in question.waits_for:
            return None
        question.waits_for.discard(answer.engine)
        question.answers.append(answer)
        return self._end_if_complete(answer.ticket)

    def lose(self, engine: int) -> list[Answered]:
        """What is complete without this engine."""
        waiting = [ticket for ticket, question in self._questions.items() if engine in question.waits_for]
        for ticket in waiting:
            self._questions[ticket].waits_for.discard(engine)
        return [answered for ticket in waiting if (answered := self._end_if_complete(ticket)) is not None]

    def _end_if_complete(self, ticket: int) -> Answered | None:
        if self._questions[ticket].waits_for:
            return None
        return Answered(ticket=ticket, answers=tuple(self._questions.pop(ticket).answers))
