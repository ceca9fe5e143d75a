"""The broker over real sockets, one turn at a time, between a real worker socket and a real engine socket."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc.broker import Broker
from ipc.doorbell import Doorbell
from ipc.fleet_page import FleetPage, State
from ipc.handles import BrokerHandles
from ipc.messages import (
    Abort,
    AbortWorker,
    Action,
    Answered,
    Control,
    EngineAnswer,
    EngineLost,
    EngineReady,
    Envelope,
    ForWorker,
    Generate,
    Kind,
    Progress,
    Rejected,
    Resume,
    SamplingParams,
    make_stream_id,
)
from ipc.metrics_page import create_metrics_segment
from ipc.sockets import EngineSocket, Inbound, WorkerSocket

PROMPT = b"\x05\0\0\0" * 3


class Rig:
    """A broker with one worker slot and two engine indices; engines connect on demand."""

    def __init__(self, folder: Path, beat_s: float = 0.25) -> None:
        self.segment = FleetPage.create_segment(num_workers=1, num_engines=2)
        self.page = FleetPage(self.segment.view)
        self.bell = Doorbell.create()
        self.handles = BrokerHandles(
            generation=1,
            model_name="m",
            fleet_fd=self.segment.fd,
            metrics_fd=create_metrics_segment("broker").fd,
            bell_fd=self.bell.fd,
            beat_s=beat_s,
            worker_endpoint=f"ipc://{folder}/workers",
            engine_endpoint=f"ipc://{folder}/engines",
            tap_endpoint=f"ipc://{folder}/tap",
            num_engines=2,
            max_num_seqs=2,
            max_num_queued_reqs=1,
            max_num_queued_tokens=1000,
        )
        self.in_flight: list[int] = []
        self.unheard: list[ForWorker] = []
        self.page.workers[0].begin_generation(1)
        self.page.workers[0].mark_alive(1)
        self.broker = Broker(self.handles)
        self.worker = WorkerSocket(self.handles.worker_endpoint, 0, 1, lambda: self.in_flight)
        self.engines: list[EngineSocket] = []

    def connect_engine(self, index: int, generation: int = 1) -> EngineSocket:
        cell = self.page.engines[index]
        cell.begin_generation(generation)
        cell.mark_alive(100 + index)
        cell.state = State.READY
        engine = EngineSocket(self.handles.engine_endpoint, index, generation)
        self.engines.append(engine)
        self.until(lambda: engine.receive(0) == [] and index in self.broker._admission.engines)
        return engine

    def generate(self, number: int) -> int:
        stream_id = make_stream_id(0, 1, number)
        message = Generate(stream_id=stream_id, request_id=f"r{number}", sampling=SamplingParams(max_tokens=5))
        self.worker.send(Envelope(Kind.GENERATE, stream_id, 3, 5), message, PROMPT)
        self.worker.flush()
        self.in_flight.append(stream_id)
        return stream_id

    def control(self) -> Control:
        control = Control(ticket=make_stream_id(0, 1, 99), action=Action.RESET_PREFIX_CACHE)
        self.worker.send(Envelope(Kind.CONTROL, control.ticket), control)
        self.worker.flush()
        return control

    def resume(self, lost: int, number: int) -> int:
        """As stream `number` what was stream `lost`."""
        stream_id = make_stream_id(0, 1, number)
        request = Generate(stream_id=lost, request_id="r", sampling=SamplingParams(max_tokens=5))
        message = Resume(stream_id=stream_id, request=request, num_output_tokens=1)
        self.worker.send(Envelope(Kind.RESUME, stream_id, 4, 4), message, PROMPT + b"\x07\0\0\0")
        self.worker.flush()
        return stream_id

    def received(self, engine: EngineSocket) -> Inbound:
        """The next message of an engine; fails when none comes."""
        inbound: list[Inbound] = []

        def has_arrived() -> bool:
            inbound.extend(engine.receive(0))
            return bool(inbound)

        self.until(has_arrived)
        return inbound[0]

    def told(self) -> ForWorker:
        """The next message of the worker that is not about an engine being ready."""
        return self.hears(lambda message: not isinstance(message, EngineReady))[-1]

    def hears(self, is_awaited: Callable[[ForWorker], bool]) -> list[ForWorker]:
        """What the worker is told, up to the first message that is awaited."""
        messages: list[ForWorker] = []

        def has_arrived() -> bool:
            for engine in self.engines:
                engine.receive(0)  # lets them introduce themselves to a new broker
            self.unheard += self.worker.receive()
            while self.unheard and not (messages and is_awaited(messages[-1])):
                messages.append(self.unheard.pop(0))
            return bool(messages) and is_awaited(messages[-1])

        self.until(has_arrived)
        return messages

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, "condition not met within 5 s"
            self.broker.turn()

    def restart_broker(self) -> None:
        self.broker.close()
        self.broker = Broker(self.handles)

    def close(self) -> None:
        self.worker.close()
        for engine in self.engines:
            engine.close()
        self.broker.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_request_reaches_the_engine_with_its_prompt(rig: Rig) -> None:
    engine = rig.connect_engine(0)

    stream_id = rig.generate(1)

    inbound = rig.received(engine)
    assert isinstance(inbound.message, Generate)
    assert (inbound.message.stream_id, inbound.prompt) == (stream_id, PROMPT)


def test_without_an_engine_the_request_is_rejected(rig: Rig) -> None:
    stream_id = rig.generate(1)

    assert rig.told() == Rejected(stream_id=stream_id, reason="no_engine", retry_after_s=2)


def test_overload_is_rejected_and_ends_make_room(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    streams = [rig.generate(number) for number in range(4)]

    rejected = rig.told()
    assert isinstance(rejected, Rejected)
    assert (rejected.stream_id, rejected.reason) == (streams[3], "max_num_queued_reqs")

    engine.send(Progress(engine=0, generation=1, started=(streams[0],), ended=(streams[0],)))
    rig.until(lambda: streams[0] not in rig.broker._admission.engines[0].in_flight)
    last = rig.generate(9)
    rig.until(lambda: last in rig.broker._admission.engines[0].in_flight)


def test_an_abort_follows_its_request(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    stream_id = rig.generate(1)
    rig.received(engine)

    rig.worker.send(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))
    rig.worker.flush()

    assert rig.received(engine).message == Abort(stream_id=stream_id)


def test_an_operators_word_reaches_all_engines_and_workers_and_their_answers_come_together(rig: Rig) -> None:
    engines = [rig.connect_engine(index) for index in (0, 1)]
    control = rig.control()

    for engine in engines:
        assert rig.received(engine).message == control
    assert rig.told() == control, "the worker that asked obeys too"
    answers = [EngineAnswer(engine=index, ticket=control.ticket, count=index) for index in (0, 1)]
    for engine, answer in zip(engines, answers, strict=True):
        engine.send(answer)
    told = rig.told()
    assert isinstance(told, Answered)
    assert (told.ticket, sorted(told.answers, key=lambda answer: answer.engine)) == (control.ticket, answers)


def test_an_engine_that_dies_before_it_answers_is_not_waited_for(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    control = rig.control()
    rig.received(engine)

    rig.page.engines[0].mark_dead()

    assert rig.told() == control
    assert rig.told() == Answered(ticket=control.ticket)


def test_a_dead_engine_is_reported_once_and_its_successor_serves(rig: Rig) -> None:
    rig.connect_engine(0)
    stream_id = rig.generate(1)
    rig.until(lambda: rig.broker._admission.engine_of(stream_id) is not None)

    rig.page.engines[0].mark_dead()

    assert rig.told() == EngineLost(engine=0, stream_ids=(stream_id,))
    successor = rig.connect_engine(0, generation=2)
    assert rig.hears(lambda message: True) == [EngineReady(engine=0)], "lost once, and now to be resumed"
    after = rig.generate(2)
    message = rig.received(successor).message
    assert isinstance(message, Generate) and message.stream_id == after


def test_a_dead_worker_is_aborted_in_the_engines(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    rig.generate(1)
    rig.received(engine)

    rig.page.workers[0].mark_dead()

    assert rig.received(engine).message == AbortWorker(slot=0, generation=2)


def test_a_death_that_the_bell_tells_of_is_not_waited_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, beat_s=60.0)
    rig.connect_engine(0)
    stream_id = rig.generate(1)
    rig.until(lambda: rig.broker._admission.engine_of(stream_id) is not None)
    rig.until(lambda: not rig.broker._has_news)  # from here on it waits a whole beat

    rig.page.engines[0].mark_dead()
    rig.bell.ring()

    assert rig.told() == EngineLost(engine=0, stream_ids=(stream_id,))
    rig.close()


def test_a_new_broker_learns_who_is_there_and_reports_what_is_lost(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    kept, lost = rig.generate(1), make_stream_id(0, 1, 77)
    rig.received(engine)
    rig.in_flight.append(lost)  # was in the old broker's hands
    engine._running = lambda: [kept]

    rig.restart_broker()

    assert rig.told() == EngineLost(engine=-1, stream_ids=(lost,))
    assert rig.broker._admission.engine_of(kept) is not None
    rig.worker.send(Envelope(Kind.ABORT, kept), Abort(stream_id=kept))
    rig.worker.flush()
    assert rig.received(engine).message == Abort(stream_id=kept)


def test_a_worker_that_died_with_the_broker_is_aborted_when_the_engine_says_what_it_still_runs(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    orphan = rig.generate(1)
    rig.received(engine)
    rig.page.workers[0].mark_dead()

    rig.restart_broker()
    for _ in range(2):
        rig.broker.turn()  # it looks at the fleet before it hears of the engine's streams
    engine._running = lambda: [orphan]

    assert rig.received(engine).message == AbortWorker(slot=0, generation=2)


def test_what_an_engine_lost_is_resumed_in_another_even_when_that_one_is_full(rig: Rig) -> None:
    for index in (0, 1):
        rig.connect_engine(index)
    streams = [rig.generate(number) for number in range(6)]
    rig.until(lambda: all(rig.broker._admission.engine_of(stream_id) is not None for stream_id in streams))

    rig.page.engines[0].mark_dead()

    lost = rig.told()
    assert isinstance(lost, EngineLost) and len(lost.stream_ids) == 3
    assert rig.hears(lambda _message: True) == [EngineReady(engine=1)]
    resumed = rig.resume(lost.stream_ids[0], number=9)
    rig.until(lambda: rig.broker._admission.engine_of(resumed) is not None)
    refused = rig.generate(10)
    assert rig.told() == Rejected(stream_id=refused, reason="max_num_queued_reqs", retry_after_s=1)


def test_without_an_engine_even_a_resumption_is_rejected(rig: Rig) -> None:
    stream_id = rig.resume(make_stream_id(0, 1, 1), number=2)

    assert rig.told() == Rejected(stream_id=stream_id, reason="no_engine", retry_after_s=2)


def test_what_is_ended_while_there_is_no_broker_ends_when_the_engine_has_found_the_new_one(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    stream_id = rig.generate(1)
    rig.received(engine)
    rig.restart_broker()
    abort = Abort(stream_id=stream_id, wants_finish=True)
    rig.worker.send(Envelope(Kind.ABORT, stream_id), abort)
    rig.worker.flush()
    rig.until(
        lambda: rig.worker.receive() == [] and stream_id in rig.broker._early_aborts
    )  # the engine is in a long step

    engine._running = lambda: [stream_id]

    assert rig.received(engine).message == abort and not rig.broker._early_aborts


def test_an_abort_of_what_has_ended_is_not_kept(rig: Rig) -> None:
    rig.connect_engine(0)
    ended, last = make_stream_id(0, 1, 1), make_stream_id(0, 1, 2)
    rig.in_flight.append(last)
    rig.worker.send(Envelope(Kind.ABORT, ended), Abort(stream_id=ended))
    rig.generate(2)
    rig.until(lambda: rig.broker._admission.engine_of(last) is not None)

    assert not rig.broker._early_aborts


def test_a_stream_that_was_given_up_is_aborted_when_an_engine_claims_it_late(rig: Rig) -> None:
    engine = rig.connect_engine(0)
    slow = rig.generate(1)
    rig.received(engine)

    rig.restart_broker()
    rig.until(lambda: rig.worker.receive() == [] and slow in rig.broker._given_up)  # the engine is in a long step
    engine._running = lambda: [slow]

    assert rig.received(engine).message == Abort(stream_id=slow)
