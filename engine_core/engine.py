"""One turn of an engine: take messages, schedule, run, publish. The only module that knows all the parts. No torch.

A turn without work blocks in the broker's socket; every turn beats. A forward pass that raises fails the sequences
of its plan and the engine goes on; several in a row mean that the device or the process is broken, and end it.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from engine_core.intake import Intake
from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox
from engine_core.plan import Runner, StepPlan
from engine_core.scheduler import NO_TOKENS, SampledTokens, Scheduler
from ipc.fleet_page import Cell
from ipc.messages import Progress
from ipc.record import FailureCode
from ipc.sockets import Inbound

logger = logging.getLogger(__name__)

IDLE_MS = 200  # longest wait for a message: heartbeat and stop flag are looked at this often
OVERFLOW_RETRY_MS = 3  # with output waiting for a full ring
MAX_FAILED_STEPS = 3  # in a row


class BrokerSocket(Protocol):
    """The part of ipc.sockets.EngineSocket that is used here."""

    def receive(self, timeout_ms: int) -> list[Inbound]: ...
    def send(self, message: Progress) -> None: ...


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
    ) -> None:
        self._index, self._generation = index, generation
        self._socket = socket
        self._intake = intake
        self._scheduler = scheduler
        self._runner = runner
        self._outbox = outbox
        self._cell = cell
        self._metrics = metrics
        self._num_steps = 0
        self._num_failed_steps = 0
        self._counts_seen = (0, 0, 0)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Turn until told to stop; the step in hand is finished and published."""
        while not should_stop():
            self.turn()

    def turn(self) -> None:
        """At most one step. Waits for messages only when there is nothing to compute."""
        self._cell.beat()
        self._intake.take(self._socket.receive(self._wait_ms()))
        self._look_at_workers()
        started_s = time.monotonic()
        plan = self._scheduler.schedule()
        tokens = NO_TOKENS if plan is None else self._compute(plan)
        self._outbox.publish(tokens, self._scheduler.take_endings())
        self._report(plan, time.monotonic() - started_s)

    def _wait_ms(self) -> int:
        if self._scheduler.has_work:
            return 0
        return OVERFLOW_RETRY_MS if self._outbox.has_overflow else IDLE_MS

    def _look_at_workers(self) -> None:
        """Cut the streams of workers that were replaced, and of those that do not read."""
        for slot, generation in self._outbox.new_readers():
            self._scheduler.abort_slot(slot, generation)
        for slot in self._outbox.stalled_slots:
            self._scheduler.fail_slot(slot, FailureCode.OVERFLOW, "the worker fell too far behind to be served")

    def _compute(self, plan: StepPlan) -> SampledTokens:
        try:
            result = self._runner.launch(plan).result()
        except Exception as error:
            self._num_failed_steps += 1
            logger.exception("step failed", extra={"num_rows": len(plan.rows), "num_tokens": plan.num_tokens})
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
            self._scheduler.fail_plan(plan, f"the engine failed to compute this step: {type(error).__name__}")
            return NO_TOKENS
        self._num_failed_steps = 0
        return self._scheduler.commit(plan, result)

    def _report(self, plan: StepPlan | None, duration_s: float) -> None:
        """Tell the broker what started and ended, and everybody how it goes."""
        scheduler = self._scheduler
        started, ended = scheduler.take_progress()
        if started or ended:
            self._socket.send(
                Progress(engine=self._index, generation=self._generation, started=tuple(started), ended=tuple(ended))
            )
        if plan is not None:
            self._num_steps += 1
            self._cell.steps = self._num_steps
            self._metrics.on_step(plan.num_tokens, duration_s)
        self._cell.has_work = scheduler.has_work
        self._metrics.on_load(
            scheduler.num_running, scheduler.num_waiting, scheduler.blocks.num_in_use / scheduler.blocks.num_blocks
        )
        self._report_counts()

    def _report_counts(self) -> None:
        counts = self._scheduler.counts
        seen = (counts.num_preemptions, counts.prefix_queries, counts.prefix_hits)
        if seen != self._counts_seen:
            preemptions, queries, hits = (now - before for now, before in zip(seen, self._counts_seen, strict=True))
            self._metrics.on_counts(preemptions, queries, hits)
            self._counts_seen = seen
