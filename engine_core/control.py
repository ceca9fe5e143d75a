"""What an operator asks of one engine beside its requests: to end some, to forget its prefixes, to be profiled. No torch.

Called between two steps. Nothing here breaks a running sequence that is not meant.
"""

import logging
from typing import Protocol

from engine_core.intake import Intake
from engine_core.scheduler import Scheduler
from ipc.messages import Action, Control, EngineAnswer, ProfileOptions

logger = logging.getLogger(__name__)


class ProfilerFault(Exception):
    """It cannot be started or stopped now; the message is one line for the operator."""


class Profiler(Protocol):
    """engine_core.torch_profiler, where the engine has torch and the operator named a folder."""

    @property
    def is_armed(self) -> bool: ...
    def start(self, options: ProfileOptions) -> None: ...
    def on_step(self) -> None: ...
    def stop(self) -> None: ...


class Controls:
    """Of one engine. Without a profiler there is nothing to profile, which is no fault: the engine sim has no torch."""

    def __init__(self, index: int, scheduler: Scheduler, intake: Intake, profiler: Profiler | None) -> None:
        self._index, self._scheduler, self._intake, self._profiler = index, scheduler, intake, profiler

    def obey(self, control: Control) -> EngineAnswer:
        count, fault = 0, ""
        try:
            count = self._do(control)
        except ProfilerFault as error:
            fault = str(error)
        except Exception as error:  # of torch's profiler: the engine goes on
            logger.exception("operator's word failed", extra={"action": control.action})
            fault = f"{type(error).__name__}: {error}"
        return EngineAnswer(engine=self._index, ticket=control.ticket, count=count, fault=fault)

    def _do(self, control: Control) -> int:
        """How many requests, blocks or traces it came to."""
        match control.action:
            case Action.ABORT_REQUESTS:
                return self._intake.stop_requests(frozenset(control.request_ids))
            case Action.RESET_PREFIX_CACHE:
                return self._scheduler.blocks.forget_prefixes()
            case Action.START_PROFILE if self._profiler is not None:
                self._profiler.start(control.profile)
                return 1
            case Action.STOP_PROFILE if self._profiler is not None:
                self._profiler.stop()
                return 1
        return 0
