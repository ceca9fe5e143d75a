"""An engine vllm gives its memory back and takes it again: POST /sleep, /wake_up, /release_kv_cache_memory, GET /is_sleeping.
It rests: POST /pause, /resume, GET /is_paused. All in vLLM's forms.

There with --engine vllm and --server-dev-mode, in all engines of the fleet at once. Requests that come meanwhile wait.
"""

import logging

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from apiserver.asgi import send_json
from apiserver.errors import InvalidRequest
from apiserver.fleet_control import FleetControl
from apiserver.routes.operator import check_faults, flag, of_engines
from ipc.messages import Action, EngineAnswer, SleepOptions

logger = logging.getLogger(__name__)

LEVELS = ("0", "1", "2")
MODES = ("abort", "wait", "keep")


class Sleep:
    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope["query_string"])
        level = int(_one_of(query, "level", LEVELS, "1"))
        options = SleepOptions(level=level, mode=_one_of(query, "mode", MODES, "abort"))
        check_faults(of_engines(await self._control.tell(Action.SLEEP, sleep=options)))
        logger.info("engines sleep", extra={"level": level, "mode": options.mode})
        await send_json(send, {"status": "sleeping", "level": level})


class WakeUp:
    """Some of what sleeps (`tags`), or all."""

    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tags = QueryParams(scope["query_string"]).getlist("tags")
        answers = of_engines(await self._control.tell(Action.WAKE_UP, sleep=SleepOptions(tags=tuple(tags))))
        check_faults(answers)
        logger.info("engines are woken", extra={"tags": ",".join(tags)})
        await send_json(send, {"status": "awake" if _all_say_so(answers) else "sleeping", "tags": tags or None})


class Pause:
    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope["query_string"])
        options = SleepOptions(
            mode=_one_of(query, "mode", MODES, "abort"), clears_cache=flag(query, "clear_cache", True)
        )
        check_faults(of_engines(await self._control.tell(Action.PAUSE, sleep=options)))
        logger.info("engines are paused", extra={"mode": options.mode})
        await send_json(send, {"status": "paused"})


class Do:
    """What needs no more than to be said."""

    def __init__(self, control: FleetControl, action: Action, status: str) -> None:
        self._control, self._action, self._status = control, action, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_faults(of_engines(await self._control.tell(self._action)))
        logger.info("engines obeyed", extra={"status": self._status})
        await send_json(send, {"status": self._status})


class Is:
    """Whether any engine is so."""

    def __init__(self, control: FleetControl, action: Action) -> None:
        self._control, self._action = control, action

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = of_engines(await self._control.tell(self._action))
        check_faults(answers)
        await send_json(send, {self._action.name.lower(): any(answer.count for answer in answers)})


def _all_say_so(answers: tuple[EngineAnswer, ...]) -> bool:
    return all(answer.count for answer in answers)


def _one_of(query: QueryParams, name: str, values: tuple[str, ...], default: str) -> str:
    value = query.get(name, default)
    if value not in values:
        raise InvalidRequest(f"{name} must be one of {', '.join(values)}", param=name)
    return value
