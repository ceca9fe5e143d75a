"""The master loop: starts the fleet, keeps every process alive, watches heartbeats, drains on SIGTERM.

    prepare  a GGUF that is not converted yet becomes a folder, in a child; probes are answered meanwhile
    start    engines, broker and zygote at once, workers when the zygote has loaded; then the ready line
    run      a dead process is replaced with the next generation; a silent one is aborted first. One that cannot start ends
             the fleet, after what runs has finished; an engine does so only if it is the last
    reload   on SIGHUP: settings are read again, a new zygote loads, every worker is replaced by one of it (ops.worker_set)
    drain    readiness false at once; for `pre_stop_s` new requests are still taken; then workers finish what runs, until
             `drain_timeout_s`; then engines, broker and zygote end. A second signal ends everything now.

It imports neither torch nor numpy and does no request's work.
"""

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable

from config.load import ConfigError, Configuration
from config.lora import lora_paths
from config.model_folder import ModelFolder
from config.reload import reloaded
from config.settings import OpsSettings, Settings
from engine_core.model_source import ModelSource
from engine_core.start_stages import StartStages
from ipc.exposition import Exposition
from ipc.fleet_page import Cell, State
from ops import exit_codes, logs, ready_line, roles
from ops.children import Child, reap_strangers, wait_for_exit
from ops.fleet_metrics import FleetMetrics
from ops.fleet_view import FleetView
from ops.ops_port import OpsPort, OpsServer
from ops.plan import BrokerPlan, EnginePlan, PreparePlan, ZygotePlan
from ops.process_control import adopt_orphans
from ops.resources import Resources, fds_of
from ops.worker_set import CannotReplace, WorkerSet
from ops.zygote_set import ZygoteSet

logger = logging.getLogger(__name__)

STOOD_STILL_S = 0.5  # a watch late by this was not the fleet's fault: a frozen container, a suspended machine
START_TIMEOUT_S = 30.0  # of worker and broker, which load nothing
STOP_GRACE_S = 5.0  # engines and broker, after the workers
VLLM_STOP_GRACE_S = 25.0  # an engine that ends a vLLM, which has engine_core.vllm.server.STOP_S for it
REPLACE_TIMEOUT_S = 60.0  # a new zygote has loaded, a new worker serves


class Supervisor:
    def __init__(
        self, settings: Settings, resources: Resources, supervisor_pid: int, reload: Callable[[], Configuration]
    ) -> None:
        """`reload` reads the configuration again; raises ConfigError."""
        self._settings, self._resources, self._pid = settings, resources, supervisor_pid
        self._read_configuration = reload
        self._model: ModelFolder  # known once it is prepared, before the first process that needs it
        page, backoff_s = resources.page, settings.ops.restart_backoff_max_s
        self._zygotes = ZygoteSet(self._start_zygote, self._keep, settings)
        ring_broker = resources.broker_bell.ring  # else it would notice with its next beat
        _, broker_metrics, *metrics = resources.metrics_views
        engine_metrics, worker_metrics = metrics[: len(page.engines)], metrics[len(page.engines) :]
        self._broker = Child("broker", page.broker, self._start_broker, backoff_s, metrics=broker_metrics)
        self._engines = [
            Child(f"engine {n}", cell, self._engine_starter(n), backoff_s, metrics=view, on_death=ring_broker)
            for n, (cell, view) in enumerate(zip(page.engines, engine_metrics, strict=True))
        ]
        self._workers = WorkerSet(
            page.workers, self._worker_starter, self._keep, backoff_s, worker_metrics, on_death=ring_broker
        )
        exposition = Exposition(resources.metrics_views)
        self._port = OpsPort(
            page,
            exposition,
            FleetView(page, resources.metrics_views),
            heartbeat_timeout_s=settings.ops.heartbeat_timeout_s,
            engine_step_timeout_s=settings.ops.engine_step_timeout_s,
        )
        self._metrics = FleetMetrics(
            resources.supervisor_metrics,
            page,
            resources.ring_views,
            num_workers=resources.num_workers,
            heartbeat_timeout_s=settings.ops.heartbeat_timeout_s,
            drain_limit_s=lambda: self._settings.ops.pre_stop_s + self._settings.ops.drain_timeout_s,
            adapters=tuple(lora_paths(settings.engine.lora_modules)),
        )
        self._should_stop = asyncio.Event()
        self._has_failed = asyncio.Event()  # something is gone that nothing stands in for
        self._keepers: set[asyncio.Task[None]] = set()
        self._has_started = asyncio.Event()
        self._should_reload = asyncio.Event()
        self._is_reading = False  # the configuration, in a thread that may have a process of its own
        self._num_signals = 0
        self._stages = StartStages()

    @property
    def _children(self) -> list[Child]:
        return [self._broker, *self._engines, *self._zygotes.children, *self._workers.children]

    async def run(self, source: ModelSource, read_model: Callable[[], ModelFolder]) -> int:
        """From the first process to the last; returns the exit code. Raises what `read_model` does."""
        adopt_orphans()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._should_reload.set)
        server = OpsServer(self._port)
        serving = asyncio.create_task(server.serve(sockets=[self._resources.ops_listener]))
        try:
            if source.is_ready or await self._has_prepared():
                self._model = read_model()
                code = await self._run_fleet()
            else:
                code = exit_codes.OK if self._should_stop.is_set() else exit_codes.FAILED
        finally:
            server.stop()
            await serving
        logger.info("fleet stopped", extra={"code": code})
        return code

    async def _has_prepared(self) -> bool:
        """Convert the model in a process of its own. False when it failed, which is explained, or was told to stop."""
        pid = self._started(roles.start("prepare", PreparePlan(supervisor_pid=self._pid, settings=self._settings)))
        ending = asyncio.create_task(wait_for_exit(pid))
        stopping = asyncio.create_task(self._should_stop.wait())
        await asyncio.wait([ending, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            os.kill(pid, signal.SIGTERM)
        stopping.cancel()
        exit = await ending
        if self._should_stop.is_set():
            return False
        if exit.code not in (exit_codes.OK, exit_codes.CANNOT_BOOT):
            logger.error("conversion failed", extra=exit.fields)
        return exit.code == exit_codes.OK

    async def _run_fleet(self) -> int:
        self._stages.done("configuration")
        for child in self._children:
            self._keep(child)
        watch = asyncio.create_task(self._watch())
        watch.add_done_callback(self._on_watch_ended)
        try:
            return await self._serve()
        finally:
            watch.cancel()
            await self._stop_all()

    def _keep(self, child: Child) -> None:
        """In the background, until it is stopped or has given up."""
        keeper = asyncio.create_task(child.keep())
        self._keepers.add(keeper)
        keeper.add_done_callback(lambda task: self._on_kept(task, child))

    def _on_kept(self, keeper: "asyncio.Task[None]", child: Child) -> None:
        self._keepers.discard(keeper)
        if keeper.cancelled():
            return
        if (error := keeper.exception()) is not None:
            logger.error("fleet stops: a keeper crashed", exc_info=error, extra={"child": child.title})
            self._has_failed.set()
        elif child.has_given_up:
            self._on_given_up(child)

    def _on_given_up(self, child: Child) -> None:
        """Other engines stand in for one; a successor that does not come up is a failed reload and no more."""
        if child in self._engines:
            is_the_end = all(engine.has_given_up for engine in self._engines)
        else:
            is_the_end = child is self._broker or self._zygotes.needs(child) or self._workers.needs(child)
        if is_the_end:
            logger.error("fleet stops: a process cannot start", extra={"child": child.title})
            self._has_failed.set()
        else:
            logger.error("a process cannot start: the fleet serves on", extra={"child": child.title})

    def _on_watch_ended(self, watch: "asyncio.Task[None]") -> None:
        if not watch.cancelled():
            logger.error("fleet stops: its watch crashed", exc_info=watch.exception())
            self._has_failed.set()

    async def _serve(self) -> int:
        """Until told to stop, or until something has failed that nothing stands in for."""
        stopping = asyncio.create_task(self._should_stop.wait())
        failing = asyncio.create_task(self._has_failed.wait())
        ready = asyncio.create_task(self._await_ready())
        reloading = asyncio.create_task(self._reload_when_told())
        await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, failing, ready, reloading):
            task.cancel()
        if self._should_stop.is_set():
            await self._drain()
            return exit_codes.OK if self._num_signals == 1 else exit_codes.INTERRUPTED
        await self._finish_running()
        return exit_codes.FAILED

    async def _await_ready(self) -> None:
        with ready_line.StartProgress(self._resources.page) as progress:
            while self._resources.page.faults(self._settings.ops.heartbeat_timeout_s):
                progress.update()
                await asyncio.sleep(0.05)
        self._port.has_started = True
        self._has_started.set()
        self._stages.done("processes")
        self._stages.log()
        ready_line.show(self._settings, self._model, self._resources)
        logger.info("fleet ready", extra={"url": self._resources.url, "ops_url": self._resources.ops_url})

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_zygote(self, settings: Settings, command_fd: int) -> int:
        fds = {
            fd for slot in range(self._resources.num_slots) for fd in fds_of(self._resources.worker_handles(slot, 0))
        }
        plan = ZygotePlan(
            supervisor_pid=self._pid,
            settings=settings,
            model=self._model,
            command_fd=command_fd,
            worker_fds=tuple(fds),
        )
        return self._started(roles.start_zygote(plan))

    async def _start_broker(self, generation: int) -> int:
        handles = self._resources.broker_handles(generation, self._model.name)
        plan = BrokerPlan(supervisor_pid=self._pid, settings=self._settings, handles=handles)
        return self._started(roles.start_broker(plan))

    def _engine_starter(self, index: int) -> Callable[[int], Awaitable[int]]:
        async def start(generation: int) -> int:
            handles = self._resources.engine_handles(index, generation)
            plan = EnginePlan(supervisor_pid=self._pid, settings=self._settings, model=self._model, handles=handles)
            return self._started(roles.start_engine(plan))

        return start

    def _worker_starter(self, slot: int) -> Callable[[int], Awaitable[int]]:
        async def start(generation: int) -> int:
            return await self._zygotes.fork(self._resources.worker_handles(slot, generation))

        return start

    def _started(self, process: "subprocess.Popen[bytes]") -> int:
        """ops.children reaps by pid; told so, Popen neither reaps nor warns."""
        process.returncode = 0
        return process.pid

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        """Silent loops and endless starts are aborted; strangers are reaped; the page's facts become metrics."""
        aborts: set[asyncio.Task[None]] = set()
        every_s = self._settings.ops.beat_s
        awake_since_s = watched_s = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            now_s = time.monotonic()
            if now_s - watched_s > every_s + STOOD_STILL_S:
                awake_since_s = now_s  # nobody could beat: everybody gets the time again
            watched_s = now_s
            self._reap_strangers()
            for child in self._children:
                child.look()
                if child.cell is None:
                    continue
                timeout_s = silence_timeout_s(self._settings.ops, child.cell.state, is_engine=child in self._engines)
                if now_s - awake_since_s < timeout_s:
                    continue
                reason = _stuck_reason_or_none(child.cell, timeout_s)
                if reason is not None:
                    abort = asyncio.create_task(child.abort(reason))
                    aborts.add(abort)
                    abort.add_done_callback(aborts.discard)
            self._metrics.publish()

    def _reap_strangers(self) -> None:
        has_unknown = self._is_reading or any(child.is_spawning for child in self._children)
        if not has_unknown:  # a pid that is not known here, or not yet, is no stranger's
            reap_strangers({child.pid for child in self._children if child.pid is not None})

    # ── reloading ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _reload_when_told(self) -> None:
        """One at a time, none before the fleet has started; what comes meanwhile is one more."""
        while True:
            await self._should_reload.wait()
            await self._has_started.wait()
            self._should_reload.clear()
            await self._reload()

    async def _reload(self) -> None:
        """Whatever goes wrong, the fleet serves on with what it has."""
        started_s = time.monotonic()
        try:
            await self._take_up(await self._read())
        except (ConfigError, CannotReplace) as error:
            logger.error("reload failed", extra={"reason": str(error)})
        except Exception:
            logger.exception("reload failed")
        else:
            logger.info("reloaded", extra={"duration_s": round(time.monotonic() - started_s, 3)})

    async def _read(self) -> Configuration:
        """In a thread: it may ask the GPU's driver, for up to a minute. Raises ConfigError."""
        self._is_reading = True
        try:
            return await asyncio.to_thread(self._read_configuration)
        finally:
            self._is_reading = False

    async def _take_up(self, configuration: Configuration) -> None:
        """A new zygote loads beside the old one, then each worker gives way to one of it. Raises ConfigError, CannotReplace."""
        settings = reloaded(self._settings, configuration.settings)
        ops = settings.ops
        await self._zygotes.replace(settings, REPLACE_TIMEOUT_S)
        self._settings = settings
        logs.configure("supervisor", level=ops.log_level, log_format=ops.log_format)
        await self._workers.replace_all(start_timeout_s=REPLACE_TIMEOUT_S, drain_timeout_s=ops.drain_timeout_s)
        self._resources.record(configuration)

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self, number: int) -> None:
        self._num_signals += 1
        logger.info("signal", extra={"signal": signal.Signals(number).name, "is_second": self._num_signals > 1})
        self._resources.page.is_draining = True
        self._should_stop.set()
        if self._num_signals > 1:
            for child in self._children:
                child.stop(signal.SIGKILL)

    async def _drain(self) -> None:
        ops = self._settings.ops
        await self._wait_while(lambda: self._num_signals == 1, ops.pre_stop_s)
        self._resources.stop_listening()
        for child in (*self._zygotes.children, *self._workers.children):  # the zygote holds the serving sockets too
            child.stop()
        await self._wait_while(
            lambda: any(child.pid is not None for child in self._workers.children), ops.drain_timeout_s + 1
        )

    async def _finish_running(self) -> None:
        """Nothing new can begin; what the engines have can end, and needs no broker."""
        self._resources.page.is_draining = True
        self._resources.stop_listening()
        for child in (*self._zygotes.children, *self._workers.children):
            child.stop()
        await self._wait_while(
            lambda: any(cell.is_alive and cell.has_work for cell in self._resources.page.engines),
            self._settings.ops.drain_timeout_s,
        )

    async def _wait_while(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while condition() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)

    async def _stop_all(self) -> None:
        """Everything that still runs: politely, then not."""
        for child in (*self._workers.children, *self._engines, self._broker, *self._zygotes.children):
            child.stop()
        grace_s = STOP_GRACE_S if self._settings.engine.vllm_python is None else VLLM_STOP_GRACE_S
        await self._wait_while(lambda: any(child.pid is not None for child in self._children), grace_s)
        for child in self._children:
            child.stop(signal.SIGKILL)
        await self._wait_while(lambda: any(child.pid is not None for child in self._children), STOP_GRACE_S)
        keepers = list(self._keepers)
        for task in keepers:
            task.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


def silence_timeout_s(ops: OpsSettings, state: State, *, is_engine: bool) -> float:
    """How long a loop may be silent: an engine computes one step between two beats, and a CPU takes its time."""
    if state == State.STARTING:
        return ops.engine_start_timeout_s if is_engine else max(START_TIMEOUT_S, ops.heartbeat_timeout_s)
    return ops.engine_step_timeout_s if is_engine else ops.heartbeat_timeout_s


def _stuck_reason_or_none(cell: Cell, timeout_s: float) -> str | None:
    if not cell.is_alive or cell.heartbeat_age_s <= timeout_s:
        return None
    return f"no heartbeat for {cell.heartbeat_age_s:.1f} s while {cell.state.name.lower()}"
