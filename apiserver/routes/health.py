"""Probes and facts on the serving port: /health /livez /readyz /startupz /ping /version /load /metrics.

The ops port of the supervisor answers the same probes off the hot path; Kubernetes should ask there.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.types import Receive, Scope, Send

from apiserver.asgi import send_body, send_json
from apiserver.services import Services
from ipc.exposition import CONTENT_TYPE
from ipc.fleet_page import State

Probe = Callable[[Services], tuple[bool, dict[str, Any]]]


def is_live(services: Services) -> tuple[bool, dict[str, Any]]:
    """This loop turns: it answers."""
    return True, {"worker": services.slot}


def is_ready(services: Services) -> tuple[bool, dict[str, Any]]:
    """A request sent now would be served: an engine and the broker are ready, and the fleet is not draining."""
    faults = services.fleet.faults(services.settings.ops.heartbeat_timeout_s)
    return not faults, {"reasons": faults}


def has_started(services: Services) -> tuple[bool, dict[str, Any]]:
    """Some engine has been ready in this generation; until then, how far they are."""
    engines = services.fleet.engines
    progress = max(engine.progress_permille for engine in engines) / 1000
    return any(engine.is_alive and engine.state >= State.READY for engine in engines), {"progress": progress}


class ProbeRoute:
    """200 or 503 with a JSON body that says why."""

    def __init__(self, services: Services, probe: Probe) -> None:
        self._services, self._probe = services, probe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_good, facts = self._probe(self._services)
        await send_json(send, {"status": "ok" if is_good else "failing", **facts}, status=200 if is_good else 503)


def installed_version() -> str:
    try:
        return version("tokenfleet")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


class Version:
    def __init__(self) -> None:
        self._version = installed_version()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"version": self._version})


class Load:
    """Choices in flight on this worker, as vLLM's /load."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"server_load": self._services.client.num_streams})


class Metrics:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, self._services.exposition.text(), content_type=CONTENT_TYPE.encode())
