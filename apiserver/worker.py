"""Role entry of an API worker: forked from the zygote, serves connections of the inherited sockets until told to stop.

Restart policy: always. Stop deadline: `drain_timeout_s`, in which running streams finish and nothing new is accepted. The
broker gone: new requests wait for its successor or fail by their deadline; streams go on. An engine gone: its streams go
on in its successor, or end with one error each. The supervisor gone: its death signal ends this process.
"""

import asyncio
import gc
import logging
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from apiserver.app import build_app
from apiserver.balanced_server import BalancedServer
from apiserver.engine_client import EngineClient
from apiserver.hot_path import HotPath
from apiserver.http_protocol import FleetHttpProtocol
from apiserver.journal import Journal
from apiserver.keyring import Keyring
from apiserver.metrics import WorkerMetrics
from apiserver.preload import Preloaded
from apiserver.responses.store import ResponseStore
from apiserver.services import Services
from config.model_folder import ModelFolder
from config.settings import ServerSettings, Settings
from ipc.doorbell import Doorbell
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage, State
from ipc.handles import WorkerHandles
from ipc.key_page import KeyPages
from ipc.ring import RingReader
from ipc.segment import Segment
from ipc.shelf import Shelf
from ipc.sockets import WorkerSocket

if TYPE_CHECKING:  # imported only where tracing is on
    from apiserver.tracing import RequestTracer

logger = logging.getLogger(__name__)

BACKLOG = 4096
YOUNG_OBJECTS = 50_000  # between collections; streams hold few containers and leave hardly any cycles


def run(settings: Settings, model: ModelFolder, handles: WorkerHandles, preloaded: Preloaded) -> None:
    """Serve until SIGTERM."""
    gc.freeze()  # what the zygote loaded lives as long as the process: no collection walks it, or copies its pages
    gc.set_threshold(YOUNG_OBJECTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, model, handles, preloaded))


async def serve(settings: Settings, model: ModelFolder, handles: WorkerHandles, preloaded: Preloaded) -> None:
    """On the running loop; takes over SIGTERM and SIGINT."""
    services = _build_services(settings, model, handles, preloaded)
    workers = services.fleet.workers
    server = BalancedServer(
        uvicorn.Config(
            build_app(services),
            interface="asgi3",
            http=FleetHttpProtocol,
            proxy_headers=False,  # nothing here depends on who the client says it is
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            ssl_keyfile=settings.server.ssl_keyfile,
            ssl_certfile=settings.server.ssl_certfile,
            ssl_ca_certs=settings.server.ssl_ca_certs,
            ssl_cert_reqs=settings.server.ssl_cert_reqs,
            timeout_keep_alive=settings.server.timeout_keep_alive_s,  # type: ignore[arg-type]  # call_later's: a float will do
            timeout_graceful_shutdown=settings.ops.drain_timeout_s,  # type: ignore[arg-type]  # wait_for's, likewise
        ),
        workers[handles.slot],
        [cell for slot, cell in enumerate(workers) if slot != handles.slot],
    )
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's business
    services.client.start(loop)
    heart = Heart(services, server)
    heart.start(loop)

    def stop() -> None:
        server.stop()
        heart.show_state()

    loop.add_signal_handler(signal.SIGTERM, stop)
    await server.serve(sockets=[socket.socket(fileno=fd) for fd in handles.listen_fds])
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)  # cancelled ones still send their aborts
    heart.stop()
    services.client.close()
    if services.tracer is not None:
        await loop.run_in_executor(None, services.tracer.close)
    logger.info("worker stopped", extra={"slot": handles.slot})


def _build_services(settings: Settings, model: ModelFolder, handles: WorkerHandles, preloaded: Preloaded) -> Services:
    pages = [Segment.attach(fd).view for fd in handles.metrics_fds]
    metrics = WorkerMetrics(pages[handles.metrics_index], model.name, model.max_model_len, worker=handles.slot)
    client = EngineClient(
        slot=handles.slot,
        generation=handles.generation,
        rings=[RingReader(Segment.attach(fd).view, handles.generation) for fd in handles.ring_fds],
        doorbell=Doorbell(handles.doorbell_fd),
        connect=lambda in_flight: WorkerSocket(handles.broker_endpoint, handles.slot, handles.generation, in_flight),
        block_size=settings.engine.block_size,
        enable_prefix_caching=settings.engine.enable_prefix_caching,
        on_drained=metrics.on_drained,
        journal=_journal(settings.server),
        on_resumed=metrics.streams_resumed.inc,
        hot_path=HotPath(metrics.itl.observe),
    )
    fleet = FleetPage(Segment.attach(handles.fleet_fd).view)
    return Services(
        settings=settings,
        model=model,
        preloaded=preloaded,
        client=client,
        metrics=metrics,
        exposition=Exposition(pages),
        fleet=fleet,
        slot=handles.slot,
        keyring=_keyring(settings.server, handles, fleet),
        response_store=_response_store(handles, settings.server),
        tracer=_build_tracer(settings, model, handles.slot),
    )


def _build_tracer(settings: Settings, model: ModelFolder, slot: int) -> "RequestTracer | None":
    endpoint = settings.ops.otlp_traces_endpoint
    if endpoint is None:
        return None
    from apiserver.tracing import RequestTracer  # some 10 MB and a thread: only where it is on

    return RequestTracer(endpoint, model_name=model.name, worker=slot)


def _response_store(handles: WorkerHandles, server: ServerSettings) -> ResponseStore | None:
    if not handles.shelf_fds:
        return None
    shelves = [Shelf(Segment.attach(fd).view) for fd in handles.shelf_fds]
    return ResponseStore(shelves, handles.slot, max_age_s=server.response_store_age_s)


def _keyring(server: ServerSettings, handles: WorkerHandles, fleet: FleetPage) -> Keyring:
    views = [Segment.attach(fd).view for fd in handles.key_page_fds]
    pages = KeyPages(views, handles.slot, lambda slot: fleet.workers[slot].is_alive) if views else None
    return Keyring(server.api_key, Path(server.api_key_file) if server.api_key_file is not None else None, pages)


def _journal(server: ServerSettings) -> Journal | None:
    if not server.resume:
        return None
    return Journal(timeout_s=server.resume_timeout_s, max_log_bytes=server.resume_log_bytes)


class Heart:
    """Beats from the serving loop, so that a stuck loop is a silent one; measures how late the loop runs."""

    def __init__(self, services: Services, server: uvicorn.Server) -> None:
        self._services, self._server = services, server
        self._cell = services.fleet.workers[services.slot]
        self._timer: asyncio.TimerHandle | None = None
        self._every_s = services.settings.ops.beat_s
        self._due_s = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due_s = time.monotonic()
        self._beat()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def show_state(self) -> None:
        if self._server.should_exit:
            self._cell.state = State.DRAINING
        elif self._server.started:
            self._cell.state = State.READY

    def _beat(self) -> None:
        now_s = time.monotonic()
        services, state = self._services, self._server.server_state
        services.metrics.loop_lag.observe(max(0.0, now_s - self._due_s))
        client = services.client
        services.metrics.on_beat(
            len(state.connections), client.num_streams, client.oldest_age_s, services.preloaded.tokenizer.cache_stats()
        )
        client.drain()  # an engine may have died between its record and the doorbell
        client.exchange()
        services.keyring.reload()
        self._cell.has_work = client.num_streams > 0
        self.show_state()
        self._cell.beat()
        self._due_s = self._loop.time() + self._every_s  # its clock stands still during a turn, and timers go by it
        self._timer = self._loop.call_later(self._every_s, self._beat)
