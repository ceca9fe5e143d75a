"""What an operator does to a running fleet: /abort_requests, /reset_prefix_cache, /start_profile, /stop_profile.

Whatever worker the connection reaches, the whole fleet obeys. The first two are there with --server-dev-mode alone, as in
vLLM (VLLM_SERVER_DEV_MODE): they touch other people's requests. The others are there where --torch-profiler-dir says where
profiles go. All ask for the API key where there is one.
"""

import logging

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body, send_json
from apiserver.errors import InvalidRequest, Overloaded
from apiserver.fleet_control import FleetControl
from apiserver.schema.operator_requests import decode_abort, decode_start_profile
from ipc.messages import Action, EngineAnswer, ResetOptions

logger = logging.getLogger(__name__)

TRUE, FALSE = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n")
MAX_BODY_BYTES = 2 * 1024 * 1024


class AbortRequests:
    """Ends requests of any worker: their clients get what there is, with the finish reason "abort". Answers how many it
    found; what an engine's loss has left without one is ended with an error, and not counted."""

    def __init__(self, control: FleetControl, *, takes_all: bool) -> None:
        """`takes_all`: without ids all requests are meant, as on vLLM's route."""
        self._control, self._takes_all = control, takes_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_abort(await read_body(scope, receive, MAX_BODY_BYTES))
        ids = request.ids
        if not ids and not self._takes_all:
            raise InvalidRequest("request_ids is missing or empty", param="request_ids")
        answers = await self._control.tell(Action.ABORT_REQUESTS, request_ids=ids)
        num_aborted = sum(answer.count for answer in answers)
        logger.info("requests aborted", extra={"num_asked": len(ids), "num_aborted": num_aborted})
        await send_json(send, {"status": "aborted", "aborted": num_aborted})


class ResetPrefixCache:
    """No later request finds K/V of an earlier one. Running requests go on, so unlike vLLM's it need not be tried again; its
    `reset_running_requests` and `reset_external` are for an engine vllm."""

    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope["query_string"])
        reset = ResetOptions(
            running=flag(query, "reset_running_requests"), external=flag(query, "reset_external")
        )  # fmt: skip
        answers = of_engines(await self._control.tell(Action.RESET_PREFIX_CACHE, reset=reset))
        logger.info("prefix cache reset", extra={"num_blocks": sum(answer.count for answer in answers)})
        await send_json(send, {"success": all(not answer.fault for answer in answers)})


class StartProfile:
    """A torch trace of each engine that runs torch, and the stacks of each worker."""

    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode_start_profile(await read_body(scope, receive, MAX_BODY_BYTES))
        check_faults(of_engines(await self._control.tell(Action.START_PROFILE, profile=request.options)))
        await send_json(send, {"status": "started"})


class StopProfile:
    """Answers when the engines' traces are written; the workers' stacks follow within a moment."""

    def __init__(self, control: FleetControl) -> None:
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_faults(await self._control.tell(Action.STOP_PROFILE))
        await send_json(send, {"status": "stopped"})


def flag(query: QueryParams, name: str, default: bool = False) -> bool:
    """As FastAPI reads one. Raises InvalidRequest."""
    value = query.get(name, str(default)).lower()
    if value not in TRUE + FALSE:
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value in TRUE


def of_engines(answers: tuple[EngineAnswer, ...]) -> tuple[EngineAnswer, ...]:
    """Raises Overloaded where there is none."""
    if not answers:
        raise Overloaded("no engine is ready", retry_after_s=1, reason="no_engine")
    return answers


def check_faults(answers: tuple[EngineAnswer, ...]) -> None:
    """Raises InvalidRequest that quotes the engines that could not."""
    faults = [f"engine {answer.engine}: {answer.fault}" for answer in answers if answer.fault]
    if faults:
        raise InvalidRequest("; ".join(faults))
