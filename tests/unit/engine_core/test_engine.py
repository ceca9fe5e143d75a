"""Engine: one turn end to end, with real rings and pages; the broker and the model are fakes."""

from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_core.batch_state import BatchState
from engine_core.control import ProfilerFault
from engine_core.engine import IDLE_MS, MAX_FAILED_STEPS, OVERFLOW_RETRY_MS, Engine
from engine_core.grammar import GrammarCompiler
from engine_core.intake import Intake
from engine_core.metrics import EngineMetrics
from engine_core.outbox import Outbox
from engine_core.plan import StepPlan, StepResult
from engine_core.scheduler import Scheduler
from ipc.block_hash import chain
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage
from ipc.messages import (
    Abort,
    Action,
    Control,
    EngineAnswer,
    FromEngine,
    Generate,
    ProfileOptions,
    Progress,
    SamplingParams,
    make_stream_id,
)
from ipc.metrics_page import create_metrics_segment
from ipc.record import FailureCode, FinishCode, StepRecord, unpack_record
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ipc.sockets import Inbound

RING_BYTES = 4096


class FakeSocket:
    def __init__(self) -> None:
        self.inbox: deque[list[Inbound]] = deque()
        self.waits_ms: list[int] = []
        self.sent: list[Progress] = []
        self.answers: list[EngineAnswer] = []

    def receive(self, timeout_ms: int) -> list[Inbound]:
        self.waits_ms.append(timeout_ms)
        return self.inbox.popleft() if self.inbox else []

    def send(self, message: FromEngine) -> None:
        if isinstance(message, EngineAnswer):
            self.answers.append(message)
        else:
            self.sent.append(message)


class FakeRunner:
    """Draws token 50 for everybody; raises while told to."""

    num_blocks = 64
    runs_ahead = False

    def __init__(self) -> None:
        self.is_broken = False
        self.error = RuntimeError("broken pass")

    def warm_up(self) -> None: ...

    def launch(self, plan: StepPlan) -> "FakeRunner":
        if self.is_broken:
            raise self.error
        self._result = StepResult(np.full(len(plan.sampled_rows), 50, np.int32))
        return self

    def result(self) -> StepResult:
        return self._result


class AheadRunner:
    """Runs ahead: draws 50 for everybody once asked for the result, in the order of launches; raises on demand."""

    num_blocks = 64
    runs_ahead = True

    def __init__(self) -> None:
        self.under_way: deque[StepPlan] = deque()
        self.most_under_way = 0
        self.is_broken = False

    def warm_up(self) -> None: ...

    def launch(self, plan: StepPlan) -> "AheadFlight":
        self.under_way.append(plan)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return AheadFlight(self, plan)


class AheadFlight:
    def __init__(self, runner: AheadRunner, plan: StepPlan) -> None:
        self.runner, self.plan = runner, plan

    def result(self) -> StepResult:
        assert self.runner.under_way.popleft() is self.plan
        if self.runner.is_broken:
            raise RuntimeError("broken pass")
        return StepResult(np.full(len(self.plan.sampled_rows), 50, np.int32))


class SilentBell:
    def ring(self) -> None: ...


class BrokenProfiler:
    is_armed = True

    def __init__(self) -> None:
        self.num_steps = 0

    def start(self, options: ProfileOptions) -> None:
        raise ProfilerFault("taken already")

    def on_step(self) -> None:
        self.num_steps += 1

    def stop(self) -> None:
        raise OSError("disk full")


class Rig:
    def __init__(
        self,
        max_overflow_bytes: int = 1 << 20,
        runner: FakeRunner | AheadRunner | None = None,
        profiler: BrokenProfiler | None = None,
    ) -> None:
        self.view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
        format_ring(self.view, RING_BYTES)
        self.reader = RingReader(self.view, 1)
        self.socket, self.runner = FakeSocket(), runner or FakeRunner()
        self.metrics = create_metrics_segment("engine")
        self.cell = FleetPage(FleetPage.create_segment(1, 1).view).engines[0]
        outbox = Outbox([RingWriter(self.view)], [SilentBell()], max_overflow_bytes)
        self.scheduler = Scheduler(BatchState(max_num_seqs=8, max_model_len=512, block_size=16), 64, 512)
        self.engine = Engine(
            index=0,
            generation=4,
            socket=self.socket,
            intake=Intake(
                self.scheduler,
                vocab_size=100,
                enable_prefix_caching=True,
                reader_generation=outbox.reader_generation,
                grammars=GrammarCompiler(Path("none"), 100, ()),
            ),
            scheduler=self.scheduler,
            runner=self.runner,
            outbox=outbox,
            cell=self.cell,
            metrics=EngineMetrics(self.metrics.view, model_name="m", engine=0, block_size=16, num_blocks=64),
            profiler=profiler,
        )

    def generate(
        self, *numbers: int, generation: int = 1, max_tokens: int = 2, prompt: bytes = b"\5\0\0\0" * 3, **fields: Any
    ) -> None:
        """Any: fields of Generate."""
        self.socket.inbox.append(
            [
                Inbound(
                    Generate(
                        stream_id=make_stream_id(0, generation, number),
                        request_id="r",
                        sampling=SamplingParams(max_tokens=max_tokens),
                        **fields,
                    ),
                    prompt,
                )
                for number in numbers
            ]
        )

    def tell(self, action: Action, request_ids: tuple[str, ...] = ()) -> None:
        self.socket.inbox.append([Inbound(Control(ticket=7, action=action, request_ids=request_ids), b"")])

    def read(self) -> list[StepRecord]:
        records = [unpack_record(payload) for payload in self.reader.poll()]
        self.reader.release()
        return records


def test_a_request_runs_to_its_finish_and_the_broker_hears_of_both_ends_once() -> None:
    rig = Rig()
    rig.generate(1, 2)

    for _ in range(4):
        rig.engine.turn()

    records = rig.read()
    assert [(record.streams, record.tokens) for record in records] == [([1, 2], [50, 50])] * 2
    assert [finish.num_output_tokens for finish in records[1].finishes] == [2, 2]
    streams = tuple(make_stream_id(0, 1, number) for number in (1, 2))
    assert rig.socket.sent == [
        Progress(engine=0, generation=4, started=streams),
        Progress(engine=0, generation=4, ended=streams),
    ]


def test_an_operator_ends_requests_by_their_ids_and_their_finish_says_so() -> None:
    rig = Rig()
    rig.generate(1, 2, max_tokens=50)
    for _ in range(3):
        rig.engine.turn()
    rig.read()
    rig.tell(Action.ABORT_REQUESTS, request_ids=("r",))

    rig.engine.turn()

    finishes = [finish for record in rig.read() for finish in record.finishes]
    assert [(finish.code, finish.num_output_tokens) for finish in finishes] == [(FinishCode.ABORT, 3)] * 2
    assert rig.socket.answers == [EngineAnswer(engine=0, ticket=7, count=1)], "two streams of one request"
    assert not rig.scheduler.has_work


def test_an_operator_ends_no_other_request_and_without_an_id_all() -> None:
    rig = Rig()
    rig.generate(1, max_tokens=50)
    rig.tell(Action.ABORT_REQUESTS, request_ids=("other",))
    for _ in range(2):
        rig.engine.turn()
    assert rig.scheduler.has_work

    rig.tell(Action.ABORT_REQUESTS)
    rig.engine.turn()

    assert not rig.scheduler.has_work
    assert [answer.count for answer in rig.socket.answers] == [0, 1]


def test_forgotten_prefixes_are_computed_again_and_who_runs_goes_on() -> None:
    rig = Rig()
    prompt = array("I", range(1, 34))
    hashes = chain(prompt.tobytes(), 16)
    for number in (1, 2):
        rig.generate(number, prompt=prompt.tobytes(), max_tokens=9 if number == 1 else 1, block_hashes=hashes)
        rig.engine.turn()
    rig.tell(Action.RESET_PREFIX_CACHE)
    rig.engine.turn()
    rig.generate(3, prompt=prompt.tobytes(), max_tokens=1, block_hashes=hashes)
    for _ in range(9):
        rig.engine.turn()

    finishes = {finish.stream: finish for record in rig.read() for finish in record.finishes}
    assert {stream: finish.num_cached_tokens for stream, finish in finishes.items()} == {1: 0, 2: 32, 3: 0}
    assert finishes[1].num_output_tokens == 9
    assert rig.socket.answers == [EngineAnswer(engine=0, ticket=7, count=2)]
    rig.scheduler.check_integrity()


def test_a_profiler_that_fails_is_an_answer_and_the_engine_goes_on() -> None:
    profiler = BrokenProfiler()
    rig = Rig(profiler=profiler)
    rig.generate(1)
    rig.tell(Action.START_PROFILE)
    rig.tell(Action.STOP_PROFILE)
    for _ in range(4):
        rig.engine.turn()

    assert [answer.fault for answer in rig.socket.answers] == ["taken already", "OSError: disk full"]
    assert profiler.num_steps == 2
    assert rig.read()[-1].finishes


def test_it_waits_for_messages_only_without_work() -> None:
    rig = Rig()
    rig.engine.turn()
    rig.generate(1)

    for _ in range(3):
        rig.engine.turn()

    assert rig.socket.waits_ms == [IDLE_MS, IDLE_MS, 0, IDLE_MS]


def test_the_cell_shows_steps_work_and_a_fresh_beat() -> None:
    rig = Rig()
    rig.engine.turn()
    assert (rig.cell.steps, rig.cell.has_work) == (0, False)

    rig.generate(1)
    rig.engine.turn()

    assert (rig.cell.steps, rig.cell.has_work) == (1, True)
    assert rig.cell.heartbeat_age_s < 5


def test_a_step_that_raises_fails_its_streams_and_the_next_ones_are_served() -> None:
    rig = Rig()
    rig.runner.is_broken = True
    rig.generate(1)
    rig.engine.turn()
    rig.runner.is_broken = False
    rig.generate(2)

    for _ in range(3):
        rig.engine.turn()

    records = rig.read()
    assert [(f.stream, f.code) for f in records[0].failures] == [(1, FailureCode.INTERNAL)]
    assert "RuntimeError" in records[0].failures[0].message
    assert [finish.stream for finish in records[-1].finishes] == [2]


def test_several_failed_steps_in_a_row_end_the_engine() -> None:
    rig = Rig()
    rig.runner.is_broken = True

    for number in range(1, MAX_FAILED_STEPS):
        rig.generate(number)
        rig.engine.turn()
    rig.generate(MAX_FAILED_STEPS)

    with pytest.raises(RuntimeError, match="broken pass"):
        rig.engine.turn()


def test_a_lost_device_ends_the_engine_at_once_and_fails_no_stream() -> None:
    runner = FakeRunner()
    rig = Rig(runner=runner)
    rig.generate(1, max_tokens=9)
    rig.engine.turn()
    rig.read()
    runner.is_broken, runner.error = True, RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        rig.engine.turn()

    assert rig.read() == [], "its streams go on in the next engine"


def test_streams_of_a_replaced_worker_are_cut_before_the_next_step() -> None:
    rig = Rig()
    rig.generate(1, max_tokens=100)
    rig.engine.turn()

    rig.reader = RingReader(rig.view, 2)
    rig.generate(1, generation=2, max_tokens=1)
    rig.engine.turn()

    (record,) = rig.read()
    assert record.streams == [1] and [finish.num_output_tokens for finish in record.finishes] == [1]
    assert rig.socket.sent[-1].ended == (make_stream_id(0, 1, 1), make_stream_id(0, 2, 1))
    assert not rig.scheduler.has_work


def test_a_worker_that_does_not_read_loses_its_streams_with_an_error() -> None:
    rig = Rig(max_overflow_bytes=2000)
    rig.generate(1, max_tokens=500)

    for _ in range(400):
        rig.engine.turn()
    assert not rig.scheduler.has_work
    assert rig.socket.waits_ms[-1] == OVERFLOW_RETRY_MS

    records: list[StepRecord] = []
    for _ in range(10):
        records += rig.read()
        rig.engine.turn()
    assert [(f.stream, f.code) for f in records[-1].failures] == [(1, FailureCode.OVERFLOW)]
    assert all(record.tokens == [50] for record in records[:-1])
    assert rig.socket.waits_ms[-1] == IDLE_MS


def test_an_abort_frees_the_blocks_within_one_turn() -> None:
    rig = Rig()
    rig.generate(1, max_tokens=100)
    rig.engine.turn()
    assert rig.scheduler.blocks.num_in_use == 1

    rig.socket.inbox.append([Inbound(Abort(stream_id=make_stream_id(0, 1, 1)), b"")])
    rig.engine.turn()

    assert rig.scheduler.blocks.num_in_use == 0
    assert rig.socket.sent[-1].ended == (make_stream_id(0, 1, 1),)


def test_counters_in_the_scrape_are_those_of_the_scheduler() -> None:
    rig = Rig()
    rig.generate(1, block_hashes=b"")
    rig.scheduler.counts.num_preemptions = 3

    for _ in range(3):
        rig.engine.turn()

    text = Exposition([rig.metrics.view]).text().decode()
    assert 'vllm:num_preemptions_total{engine="0",model_name="m"} 3.0' in text
    assert 'vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 4.0' in text
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in text


def test_run_returns_once_told_to_stop() -> None:
    rig = Rig()
    answers = iter([False, False, True])

    rig.engine.run(lambda: next(answers))

    assert len(rig.socket.waits_ms) == 2


def test_a_runner_that_runs_ahead_has_the_next_pass_before_the_last_one_is_looked_at() -> None:
    runner = AheadRunner()
    rig = Rig(runner=runner)
    rig.generate(1, 2, max_tokens=4)

    for _ in range(6):
        rig.engine.turn()

    records = rig.read()
    assert runner.most_under_way == 2
    assert [token for record in records for token in record.tokens] == [50] * 8
    assert [finish.num_output_tokens for finish in records[-1].finishes] == [4, 4]
    assert not rig.scheduler.has_work and not runner.under_way


def test_what_a_stop_id_makes_superfluous_reaches_nobody() -> None:
    rig = Rig(runner=AheadRunner())
    rig.socket.inbox.append(
        [
            Inbound(
                Generate(
                    stream_id=make_stream_id(0, 1, 1),
                    request_id="r",
                    sampling=SamplingParams(max_tokens=9, stop_token_ids=(50,)),
                ),
                b"\5\0\0\0" * 3,
            )
        ]
    )

    for _ in range(4):
        rig.engine.turn()

    (record,) = rig.read()
    assert record.tokens == [] and [finish.num_output_tokens for finish in record.finishes] == [1]
    assert rig.scheduler.blocks.num_in_use == 0


def test_a_pass_that_fails_under_way_fails_its_streams_and_the_next_ones_are_served() -> None:
    runner = AheadRunner()
    rig = Rig(runner=runner)
    rig.generate(1)
    rig.engine.turn()
    runner.is_broken = True
    rig.engine.turn()
    runner.is_broken = False
    rig.engine.turn()
    rig.generate(2)

    for _ in range(4):
        rig.engine.turn()

    records = rig.read()
    assert [(f.stream, f.code) for f in records[0].failures] == [(1, FailureCode.INTERNAL)]
    assert [finish.stream for finish in records[-1].finishes] == [2]


def test_the_pass_under_way_is_published_before_an_engine_stops() -> None:
    rig = Rig(runner=AheadRunner())
    rig.generate(1)
    answers = iter([False, True])

    rig.engine.run(lambda: next(answers))

    assert [record.tokens for record in rig.read()] == [[50]]
