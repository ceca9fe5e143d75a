"""One turn of an engine: take messages, schedule, run, publish. The only module that knows all the parts. No torch.

A turn without work blocks in the broker's socket; every turn beats. A runner that runs ahead has its next pass before the
result of the last one is looked at: what this module does for a step is done while the device computes the next. Where the
next plan depends on the tokens of the last one (drafts), at least the telling is done then. A forward pass that raises
fails the sequences of its plan and the engine goes on; several in a row mean that the process is broken, and end it, as a
lost device does at once: then the sequences go on in the engine's successor.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine_core.control import Controls, Profiler
from engine_core.errors import has_lost_device
from engine_core.intake import Intake
from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox
from engine_core.plan import Launched, Runner, StepPlan
from engine_core.scheduler import Scheduler
from engine_core.step_output import NO_TOKENS, SampledTokens
from ipc.fleet_page import Cell
from ipc.messages import FromEngine, Progress
from ipc.record import FailureCode
from ipc.sockets import Inbound

logger = logging.getLogger(__name__)

IDLE_MS = 200  # longest wait for a message: heartbeat and stop flag are looked at this often
COMPILING_MS = 1  # with a request that waits for its grammar only
OVERFLOW_RETRY_MS = 3  # with output waiting for a full ring
MAX_FAILED_STEPS = 3  # in a row


class BrokerSocket(Protocol):
    """The part of ipc.sockets.EngineSocket that is used here."""

    def receive(self, timeout_ms: int) -> list[Inbound]: ...
    def send(self, message: FromEngine) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """A pass that was launched."""

    plan: StepPlan
    launched: Launched
    started_s: float


class Engine:
    """The step loop of one engine process."""

    def __init__(
        self,
        *,
        index: int,
        generation: int,
        socket: BrokerSocket,
        intake: Intake,
        scheduler: Scheduler,
        runner: Runner,
        outbox: Outbox,
        cell: Cell,
        metrics: EngineMetrics,
        profiler: Profiler | None = None,
    ) -> None:
        self._index, self._generation = index, generation
        self._socket = socket
        self._intake = intake
        self._scheduler = scheduler
        self._runner = runner
        self._outbox = outbox
        self._cell = cell
        self._metrics = metrics
        self._profiler = profiler
        self._controls = Controls(index, scheduler, intake, profiler)
        self._flight: Flight | None = None
        self._landed_s = 0.0  # when the last pass was seen to be over
        self._num_steps = 0
        self._num_failed_steps = 0
        self._counts_seen = (0, 0, 0)
        self._drafts_seen = 0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Turn until told to stop; the step in hand is finished and published."""
        while not should_stop():
            self.turn()
        if self._flight is not None:
            self._land(self._flight)

    def turn(self) -> None:
        """At most one step. Waits for messages only when there is nothing to compute."""
        self._cell.beat()
        self._intake.take(self._socket.receive(self._wait_ms()))
        if self._intake.controls:
            self._obey()
        self._look_at_workers()
        flight, self._flight = self._flight, None
        tokens = None
        if flight is not None and self._scheduler.awaits_tokens:
            tokens = self._commit(flight)
        plan = self._scheduler.schedule()
        self._flight = None if plan is None else self._launch(plan)
        if flight is not None:
            self._tell(flight, self._commit(flight) if tokens is None else tokens)
        if self._flight is None or not self._runner.runs_ahead:
            flight, self._flight = self._flight, None
            self._land(flight)

    def _obey(self) -> None:
        controls, self._intake.controls = self._intake.controls, []
        for control in controls:
            self._socket.send(self._controls.obey(control))

    def _wait_ms(self) -> int:
        if self._scheduler.has_work or self._flight:
            return 0
        if self._intake.uncompiled:
            return COMPILING_MS
        return OVERFLOW_RETRY_MS if self._outbox.has_overflow else IDLE_MS

    def _look_at_workers(self) -> None:
        """Cut the streams of workers that were replaced, and of those that do not read."""
        for slot, generation in self._outbox.new_readers():
            self._scheduler.abort_slot(slot, generation)
        for slot in self._outbox.stalled_slots:
            self._scheduler.fail_slot(slot, FailureCode.OVERFLOW, "the worker fell too far behind to be served")

    def _launch(self, plan: StepPlan) -> Flight | None:
        started_s = time.monotonic()
        try:
            launched = self._runner.launch(plan)
        except Exception as error:
            self._scheduler.advance(plan)
            self._fail(plan, error)
            return None
        self._scheduler.advance(plan)
        return Flight(plan, launched, started_s)

    def _land(self, flight: Flight | None) -> None:
        """Wait for a pass that is under way and tell everybody what came of it."""
        self._tell(flight, NO_TOKENS if flight is None else self._commit(flight))

    def _commit(self, flight: Flight) -> SampledTokens:
        try:
            result = flight.launched.result()
        except Exception as error:
            self._fail(flight.plan, error)
            return NO_TOKENS
        self._num_failed_steps = 0
        return self._scheduler.commit(flight.plan, result)

    def _tell(self, flight: Flight | None, tokens: SampledTokens) -> None:
        """What came of a pass, and of everything else that ended."""
        self._outbox.publish(tokens, self._scheduler.take_endings())
        self._report(flight)

    def _fail(self, plan: StepPlan, error: Exception) -> None:
        """Called while the error is handled, which it raises again when the engine cannot go on."""
        self._num_failed_steps += 1
        logger.error(
            "step failed", exc_info=error, extra={"num_rows": len(plan.rows), "num_tokens": plan.num_tokens}
        )  # fmt: skip
        if self._num_failed_steps >= MAX_FAILED_STEPS or has_lost_device(error):
            raise error
        self._scheduler.fail_plan(plan, f"the engine failed to compute this step: {type(error).__name__}")

    def _report(self, flight: Flight | None) -> None:
        """Tell the broker what started and ended, and everybody how it goes."""
        scheduler = self._scheduler
        started, ended = scheduler.take_progress()
        if started or ended:
            self._socket.send(
                Progress(engine=self._index, generation=self._generation, started=tuple(started), ended=tuple(ended))
            )
        if flight is not None:
            self._num_steps += 1
            self._cell.steps = self._num_steps
            self._metrics.on_step(flight.plan.num_tokens, time.monotonic() - max(flight.started_s, self._landed_s))
            self._landed_s = time.monotonic()
            if self._profiler is not None and self._profiler.is_armed:
                self._profiler.on_step()
        self._cell.has_work = scheduler.has_work
        self._metrics.on_load(
            scheduler.num_running,
            scheduler.num_waiting,
            scheduler.blocks.num_in_use / scheduler.blocks.num_blocks,
            self._outbox.num_full_waits,
        )
        self._report_counts()

    def _report_counts(self) -> None:
        counts = self._scheduler.counts
        seen = (counts.num_preemptions, counts.prefix_queries, counts.prefix_hits)
        if seen != self._counts_seen:
            preemptions, queries, hits = (now - before for now, before in zip(seen, self._counts_seen, strict=True))
            self._metrics.on_counts(preemptions, queries, hits)
            self._counts_seen = seen
        drafts = counts.drafts
        if drafts.num_drafts != self._drafts_seen:
            self._drafts_seen = drafts.num_drafts
            self._metrics.on_drafts(drafts.num_drafts, drafts.num_tokens, drafts.accepted_per_place)
