"""An operator's word, spoken to one worker, to the whole fleet: through the broker to every engine and every worker.

Every worker hears what any of them was told: it ends what no engine has, and looks at its own stacks. The engines answer, and
the worker that was asked gets all their answers together.
"""

import asyncio

from apiserver.engine_client import EngineClient
from apiserver.errors import Overloaded
from apiserver.stack_sampler import StackSampler
from ipc.messages import Action, Answered, Control, EngineAnswer, ProfileOptions, ResetOptions, SleepOptions

ANSWER_S = 20.0  # behind one step of every engine, however long a prompt is prefilled in it
LONG_ANSWER_S = 120.0
LONG = {
    Action.STOP_PROFILE,
    Action.SLEEP,
    Action.WAKE_UP,
    Action.PAUSE,
}  # a trace is written first, weights are moved, …
NO_PROFILE, PLAIN_RESET, PLAIN_SLEEP = ProfileOptions(), ResetOptions(), SleepOptions()


class FleetControl:
    """Of one worker."""

    def __init__(self, client: EngineClient, sampler: StackSampler | None) -> None:
        """Without a sampler nothing is profiled here."""
        self._client, self._sampler = client, sampler
        self._questions: dict[int, asyncio.Future[tuple[EngineAnswer, ...]]] = {}  # by ticket
        client.on_control = self._on_control

    async def tell(
        self,
        action: Action,
        *,
        request_ids: tuple[str, ...] = (),
        profile: ProfileOptions = NO_PROFILE,
        reset: ResetOptions = PLAIN_RESET,
        sleep: SleepOptions = PLAIN_SLEEP,
    ) -> tuple[EngineAnswer, ...]:
        """One answer of each engine that is ready. Raises Overloaded when they do not come."""
        ticket = self._client.new_ticket()
        answered: asyncio.Future[tuple[EngineAnswer, ...]] = asyncio.get_running_loop().create_future()
        self._questions[ticket] = answered
        control = Control(
            ticket=ticket, action=action, request_ids=request_ids, profile=profile, reset=reset, sleep=sleep
        )  # fmt: skip
        self._client.control(control)
        try:
            async with asyncio.timeout(LONG_ANSWER_S if action in LONG else ANSWER_S):
                return await answered
        except TimeoutError:
            raise Overloaded("not every engine has answered", retry_after_s=1, reason="no_answer") from None
        finally:
            del self._questions[ticket]

    def _on_control(self, message: Control | Answered) -> None:
        if isinstance(message, Answered):
            answered = self._questions.get(message.ticket)
            if answered is not None and not answered.done():
                answered.set_result(message.answers)
        elif message.action == Action.ABORT_REQUESTS:
            self._client.abort_parked(frozenset(message.request_ids))
        elif message.action == Action.START_PROFILE and self._sampler is not None:
            self._sampler.start(message.profile.prefix)
        elif message.action == Action.STOP_PROFILE and self._sampler is not None:
            self._sampler.stop()
