"""The ops port: probes and metrics, answered by the supervisor's own loop, which never does the fleet's work.

/livez     the loops that should turn do: every ready process has beaten lately
/readyz    a request sent now would be served
/startupz  the fleet has been ready once; until then, how far it is
/metrics   all processes, Prometheus text format 0.0.4
/fleet     every process by itself, as JSON: what `tokenfleet top` shows
"""

from typing import Any

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from apiserver.quiet_server import QuietServer
from ipc.exposition import CONTENT_TYPE, Exposition
from ipc.fleet_page import FleetPage, State
from ops.fleet_view import FleetView


class OpsPort:
    """An ASGI application."""

    def __init__(
        self,
        page: FleetPage,
        exposition: Exposition,
        view: FleetView,
        *,
        heartbeat_timeout_s: float,
        engine_step_timeout_s: float,
    ) -> None:
        self._page, self._exposition, self._view, self._timeout_s = page, exposition, view, heartbeat_timeout_s
        self._step_timeout_s = engine_step_timeout_s
        self.has_started = False  # the supervisor sets it when the fleet is ready for the first time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, {"error": f"{scope['method']} is not allowed"})
        elif path == "/metrics":
            await _send(send, 200, self._exposition.text(), CONTENT_TYPE)
        elif path == "/fleet":
            await _send(send, 200, msgspec.json.encode(self._view.snapshot()), "application/json")
        elif path in ("/livez", "/readyz", "/startupz"):
            faults = {"/livez": self._silent, "/readyz": self._unready, "/startupz": self._unstarted}[path]()
            status = "failing" if faults else "ok"
            await _answer(send, 503 if faults else 200, {"status": status, "reasons": faults, **self._facts()})
        else:
            await _answer(send, 404, {"error": f"there is no route {path}"})

    def _silent(self) -> list[str]:
        """By the watchdog's own measure: a long step of an engine is work, not silence."""
        cells = [("broker", self._page.broker, self._timeout_s)]
        cells += [(f"engine {n}", cell, self._step_timeout_s) for n, cell in enumerate(self._page.engines)]
        cells += [(f"worker {n}", cell, self._timeout_s) for n, cell in enumerate(self._page.workers)]
        return [
            f"{name} has not beaten for {cell.heartbeat_age_s:.1f} s"
            for name, cell, timeout_s in cells
            if cell.is_alive and cell.state == State.READY and cell.heartbeat_age_s > timeout_s
        ]

    def _unready(self) -> list[str]:
        return self._page.faults(self._timeout_s)

    def _unstarted(self) -> list[str]:
        return [] if self.has_started else self._unready()

    def _facts(self) -> dict[str, Any]:
        page = self._page
        return {
            "workers_ready": sum(cell.is_ready(self._timeout_s) for cell in page.workers),
            "engines_ready": sum(cell.is_ready(self._timeout_s) for cell in page.engines),
            "progress": max(cell.progress_permille for cell in page.engines) / 1000,
            "restarts": sum(cell.restarts for cell in (page.broker, *page.engines, *page.workers)),
        }


GRACE_S = 1  # at the end, for a client to take its answer: a scraper may have stopped in the middle of one


class OpsServer(QuietServer):
    """In the supervisor's loop; signals are the supervisor's."""

    def __init__(self, port: OpsPort) -> None:
        super().__init__(
            uvicorn.Config(
                port,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                loop="none",
                timeout_graceful_shutdown=GRACE_S,
            )
        )


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    await _send(send, status, msgspec.json.encode(content), "application/json")


async def _send(send: Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
