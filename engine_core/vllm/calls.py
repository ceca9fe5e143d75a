"""Calls of an engine core's methods, which are no requests: vLLM answers each in a message of outputs, when it has come to it.

An operator's words become such calls, and their answers the engine's.
"""

from collections.abc import Callable
from typing import Any

from engine_core.vllm.link import EngineLink
from engine_core.vllm.wire import UtilityOutput, Wire
from ipc.messages import Action, Control, EngineAnswer, ProfileOptions

_SLEEP_AND_WAKE = frozenset((Action.SLEEP, Action.WAKE_UP, Action.PAUSE, Action.RESUME))

OnAnswer = Callable[[UtilityOutput], None]


class Calls:
    """Of one engine core."""

    def __init__(self, link: EngineLink, wire: Wire) -> None:
        self._link, self._wire, self.layout = link, wire, wire.layout
        self._waiting: dict[int, OnAnswer] = {}  # by vLLM's call id
        self._num_calls = 0

    def ask(self, method: str, arguments: tuple[Any, ...], on_answer: OnAnswer) -> None:  # Any: MessagePack
        self._num_calls += 1
        self._waiting[self._num_calls] = on_answer
        self._link.utility(self._wire.utility(self._num_calls, method, arguments))

    def take(self, output: UtilityOutput) -> None:
        on_answer = self._waiting.pop(output.call_id, None)
        if on_answer is not None:
            on_answer(output)


class Controls:
    """What an operator says to this engine, but for what concerns single requests."""

    def __init__(
        self,
        index: int,
        calls: Calls,
        answer: Callable[[EngineAnswer], None],
        on_sleep: Callable[[int | None], None],
    ) -> None:
        """`on_sleep` hears how deep it sleeps, or None when it is awake."""
        self._index, self._calls, self._answer, self._on_sleep = index, calls, answer, on_sleep
        self.is_asleep = False  # or is about to be: what vLLM aborts then it was told to, and silence is no fault
        self._last_word = 0  # ticket of the last control that put it to sleep or woke it: its answer tells how it is

    def obey(self, control: Control) -> None:
        sleep, reset = control.sleep, control.reset
        if control.action in _SLEEP_AND_WAKE:
            self._last_word = control.ticket
        match control.action:
            case Action.RESET_PREFIX_CACHE:
                self._ask(control, "reset_prefix_cache", (reset.running, reset.external))
            case Action.START_PROFILE if self._calls.layout.profile_counts_steps:
                self._ask(control, "profile", (True, *_profile_arguments(control.profile)))
            case Action.START_PROFILE if control.profile.delay_iterations or control.profile.max_iterations:
                self._tell(control, fault="this version of vLLM knows no delay_iterations and no max_iterations")
            case Action.START_PROFILE:
                self._ask(control, "profile", (True, _profile_arguments(control.profile)[0]))
            case Action.STOP_PROFILE:
                self._ask(control, "profile", (False,))
            case Action.SLEEP:
                self.is_asleep = True
                self._ask(control, "sleep", (sleep.level, sleep.mode))
            case Action.WAKE_UP:
                self._ask(control, "wake_up", (list(sleep.tags) or None,))
            case Action.IS_SLEEPING:
                self._ask(control, "is_sleeping", ())
            case Action.PAUSE:
                self.is_asleep = True
                self._ask(control, "pause_scheduler", (sleep.mode, sleep.clears_cache))
            case Action.RESUME:
                self._ask(control, "resume_scheduler", ())
            case Action.IS_PAUSED:
                self._ask(control, "is_scheduler_paused", ())
            case Action.RELEASE_KV_CACHE:
                self._ask(control, "release_kv_cache_memory", ())

    def _ask(self, control: Control, method: str, arguments: tuple[Any, ...]) -> None:
        self._calls.ask(method, arguments, lambda output: self._on_answer(control, output))

    def _on_answer(self, control: Control, output: UtilityOutput) -> None:
        if control.action == Action.WAKE_UP and not _fault(output) and not self._calls.layout.wake_up_says_whether:
            self._calls.ask(
                "is_sleeping", (), lambda asked: self._conclude(control, not _is_true(asked), _fault(asked))
            )
        else:
            self._conclude(control, _is_true(output), _fault(output))

    def _conclude(self, control: Control, is_true: bool, fault: str) -> None:
        if control.action == Action.RESET_PREFIX_CACHE and not is_true and not fault:
            fault = "vLLM keeps its prefix cache while requests use it"  # whoever asked may ask again
        has_failed = bool(fault)
        is_awake = {
            Action.SLEEP: has_failed, Action.PAUSE: has_failed, Action.RESUME: not has_failed, Action.WAKE_UP: is_true,
        }  # fmt: skip
        if control.ticket == self._last_word and is_awake.get(Action(control.action)):
            self.is_asleep = False
            self._on_sleep(None)
        elif control.action == Action.SLEEP and not has_failed:
            self._on_sleep(control.sleep.level)
        self._tell(control, count=int(is_true), fault=fault)

    def _tell(self, control: Control, *, count: int = 0, fault: str) -> None:
        self._answer(EngineAnswer(engine=self._index, ticket=control.ticket, count=count, fault=fault))


def _is_true(output: UtilityOutput) -> bool:
    return bool(output.result and output.result[1])


def _fault(output: UtilityOutput) -> str:
    return output.failure_message or ""


def _profile_arguments(options: ProfileOptions) -> tuple[Any, ...]:
    """vLLM puts its own `_` behind the prefix, and knows nothing of a zero."""
    return options.prefix.removesuffix("_") or None, options.delay_iterations or None, options.max_iterations or None
