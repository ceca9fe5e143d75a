"""The broker: a ROUTER towards the workers, a ROUTER towards the engines, admission and placement between them.

It reads envelopes and never opens a body it forwards. Tokens do not pass through it: when it dies, running streams go
on, and the supervisor starts another, to which workers and engines introduce themselves again (ipc.sockets). For the
same reason it keeps no journal of requests: what was delivered is known to the worker alone, and a stream cannot
outlive its worker's connection to the client.

    a worker slot gets a new generation   its older streams are aborted in the engines
    an engine dies or is replaced         the workers whose streams it ran get one EngineLost each
    an engine takes requests (again)      every worker hears EngineReady, and resumes there what it had lost
    no engine is connected                Generate is answered with Rejected(no_engine)
    an operator says something            every engine and every worker hears it; who asked gets the engines' answers
    this broker is new                    streams that a worker has and no engine knows are reported as lost

Restart policy: always. Stop deadline: none, it owes nobody anything once the workers are gone.
"""

import signal
import time
from collections import defaultdict
from collections.abc import Callable
from types import FrameType

import zmq

from ipc import parcel
from ipc.admission import Admission, Refusal
from ipc.broker_metrics import BrokerMetrics
from ipc.codec import decode_for_broker
from ipc.doorbell import Doorbell
from ipc.fan_out import FanOut
from ipc.fleet_page import FleetPage, State
from ipc.handles import BrokerHandles
from ipc.messages import (
    Abort,
    AbortWorker,
    Announce,
    Answered,
    EngineAnswer,
    EngineHello,
    EngineLost,
    EngineReady,
    Envelope,
    Kind,
    Message,
    Progress,
    Rejected,
    slot_of,
)
from ipc.segment import Segment

LOOK_MS = 250  # between two looks at the fleet page while anything happens
GENERATE = int(Kind.GENERATE)  # compared once per request
LOST_AFTER_S = 1.0  # engines have this long to claim the streams that workers announced to a new broker


def run(handles: BrokerHandles) -> None:
    """Role entry. Returns after SIGTERM."""
    broker = Broker(handles)
    should_stop = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal should_stop
        should_stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the supervisor's business
    while not should_stop:
        broker.turn()
    broker.close()


class Broker:
    """One turn at a time: wait for messages, route them, look at the fleet page, beat."""

    def __init__(self, handles: BrokerHandles) -> None:
        page = FleetPage(Segment.attach(handles.fleet_fd).view)
        self._cell, self._engine_cells, self._worker_cells = page.broker, page.engines, page.workers
        self._admission = Admission(
            max_num_seqs=handles.max_num_seqs,
            max_num_queued_reqs=handles.max_num_queued_reqs,
            max_num_queued_tokens=handles.max_num_queued_tokens,
        )
        self._context = zmq.Context(io_threads=1)
        self._workers = self._bind(handles.worker_endpoint)
        self._engines = self._bind(handles.engine_endpoint)
        self._tap = self._bind_tap(handles.tap_endpoint)
        self._has_tap = False
        self._bell = Doorbell(handles.bell_fd)
        self._poller = zmq.Poller()
        for waited_for in (self._workers, self._engines, self._tap, self._bell.fd):
            self._poller.register(waited_for, zmq.POLLIN)
        self._idle_ms = int(handles.beat_s * 1000)
        self._identity_of_slot: dict[int, bytes] = {}
        self._identity_of_engine: dict[int, bytes] = {}
        self._generation_of_slot: dict[int, int] = {}
        self._outgoing: dict[int, list[bytes]] = defaultdict(list)  # parcels per engine, sent at the end of the turn
        self._unclaimed: dict[int, float] = {}  # announced stream -> when it counts as lost
        self._fan_out = FanOut()
        self._given_up: set[int] = set()  # reported as lost: aborted if an engine claims them after all
        self._early_aborts: dict[int, bytes] = {}  # parcels, for engines that are yet to say hello
        self._metrics = BrokerMetrics(Segment.attach(handles.metrics_fd).view, handles.model_name)
        self._next_look_s = 0.0
        self._has_news = True  # since the last look
        self._cell.state = State.READY

    def turn(self) -> None:
        """One turn of the loop: as long as a beat when nothing arrives."""
        for socket, _ in self._poller.poll(LOOK_MS if self._has_news or self._unclaimed else self._idle_ms):
            self._has_news = True
            if socket is self._workers:
                self._drain(self._workers, self._on_worker_parcel)
            elif socket is self._engines:
                self._drain(self._engines, self._on_engine_parcel)
            elif socket is self._tap:
                self._on_tap_subscription()
            else:
                self._bell.clear()
                self._next_look_s = 0.0
        self._cell.beat()
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s, self._has_news = now_s + LOOK_MS / 1000, False
            self._look_at_fleet()
            self._cell.num_peers = len(self._admission.engines)
            self._report_lost(now_s)
            self._metrics.publish(self._admission.engines.values())
        self._flush()

    def close(self) -> None:
        for socket in (self._workers, self._engines, self._tap):
            socket.close(linger=100)
        self._context.term()

    # ── sockets ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _bind(self, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(endpoint)
        return socket

    def _bind_tap(self, endpoint: str) -> "zmq.Socket[bytes]":
        """A PUB of everything routed, for `tokenfleet wiretap`; costs one flag test while nobody listens."""
        socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.SNDHWM, 10_000)
        socket.bind(endpoint)
        return socket

    def _on_tap_subscription(self) -> None:
        while True:
            try:
                self._has_tap = self._tap.recv(zmq.NOBLOCK)[:1] == b"\x01"
            except zmq.Again:
                return

    def _drain(self, socket: "zmq.Socket[bytes]", handle: Callable[[bytes, bytes], None]) -> None:
        for _ in range(1024):  # then the other side and the heartbeat get their turn
            try:
                identity, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for received in parcel.split(frame):
                handle(identity, received)

    def _send_to_engine(self, index: int, packed: bytes) -> None:
        """At the end of the turn, in one frame with what else the turn has for it."""
        self._show(b">engine %d" % index, packed)
        self._outgoing[index].append(packed)

    def _flush(self) -> None:
        for index, parcels in self._outgoing.items():
            self._engines.send_multipart([self._identity_of_engine[index], b"".join(parcels)])
        self._outgoing.clear()

    def _show(self, direction: bytes, packed: bytes) -> None:
        if self._has_tap:
            self._tap.send_multipart([direction, packed])

    def _send_to_worker(self, slot: int, kind: Kind, message: Message) -> None:
        identity = self._identity_of_slot.get(slot)
        if identity is None:
            return  # a worker that never introduced itself has no streams
        packed = parcel.pack(Envelope(kind), message)
        self._show(b">worker %d" % slot, packed)
        self._workers.send_multipart([identity, packed])

    # ── from the workers ─────────────────────────────────────────────────────────────────────────────────────────

    def _on_worker_parcel(self, identity: bytes, received: bytes) -> None:
        envelope = parcel.envelope_of(received)
        if envelope.kind == GENERATE:
            self._on_generate(identity, received, envelope)
        elif envelope.kind == Kind.ABORT:
            self._on_abort(received, envelope)
        elif envelope.kind == Kind.RESUME:
            self._on_generate(identity, received, envelope, is_bounded=False)  # it was admitted once
        elif envelope.kind == Kind.ANNOUNCE:
            message = decode_for_broker(parcel.body_of(received))
            assert isinstance(message, Announce)
            self._on_announce(identity, message)
        elif envelope.kind == Kind.CONTROL:
            self._on_control(identity, received, envelope)

    def _on_generate(self, identity: bytes, received: bytes, envelope: Envelope, *, is_bounded: bool = True) -> None:
        slot = slot_of(envelope.stream_id)
        self._identity_of_slot[slot] = identity
        placed = self._admission.place(
            envelope.stream_id,
            envelope.num_prompt_tokens,
            envelope.max_tokens,
            envelope.prefix_key,
            deadline_s=envelope.deadline_s,
            fair_key=envelope.fair_key,
            is_bounded=is_bounded,
        )
        if isinstance(placed, Refusal):
            self._metrics.rejections[placed.reason].inc()
            rejected = Rejected(stream_id=envelope.stream_id, reason=placed.reason, retry_after_s=placed.retry_after_s)
            self._send_to_worker(slot, Kind.REJECTED, rejected)
            return
        self._send_to_engine(placed.index, received)

    def _on_abort(self, received: bytes, envelope: Envelope) -> None:
        engine = self._admission.engine_of(envelope.stream_id)
        if engine is not None:
            self._send_to_engine(engine.index, received)  # its end comes back as Progress
        elif self._waits_for_hello():
            self._early_aborts[envelope.stream_id] = received

    def _on_control(self, identity: bytes, received: bytes, envelope: Envelope) -> None:
        """To everybody, the worker that asks among them."""
        self._identity_of_slot[slot_of(envelope.stream_id)] = identity
        for slot, worker in self._identity_of_slot.items():
            self._show(b">worker %d" % slot, received)
            self._workers.send_multipart([worker, received])
        for index in self._admission.engines:
            self._send_to_engine(index, received)
        self._tell_answered(self._fan_out.ask(envelope.stream_id, self._admission.engines))

    def _tell_answered(self, answered: Answered | None) -> None:
        if answered is not None:
            self._send_to_worker(slot_of(answered.ticket), Kind.ANSWERED, answered)

    def _on_announce(self, identity: bytes, announce: Announce) -> None:
        self._identity_of_slot[announce.slot] = identity
        lost_at_s = time.monotonic() + LOST_AFTER_S
        for stream_id in announce.stream_ids:
            if self._admission.engine_of(stream_id) is None:
                self._unclaimed[stream_id] = lost_at_s

    # ── from the engines ─────────────────────────────────────────────────────────────────────────────────────────

    def _on_engine_parcel(self, identity: bytes, received: bytes) -> None:
        self._show(b"<engine", received)
        message = decode_for_broker(parcel.body_of(received))
        if isinstance(message, Progress):
            for stream_id in message.started:
                self._admission.start(stream_id)
            for stream_id in message.ended:
                self._admission.end(stream_id)
        elif isinstance(message, EngineHello):
            self._on_hello(identity, message)
        elif isinstance(message, EngineAnswer):
            self._tell_answered(self._fan_out.take(message))

    def _on_hello(self, identity: bytes, hello: EngineHello) -> None:
        known = self._admission.engines.get(hello.engine)
        if known is not None and known.generation != hello.generation:
            self._lose_engine(hello.engine)
        self._identity_of_engine[hello.engine] = identity
        if known is None or known.generation != hello.generation:
            self._admission.connect(hello.engine, hello.generation, hello.stream_ids)
            for slot in self._identity_of_slot:
                self._send_to_worker(slot, Kind.ENGINE_READY, EngineReady(engine=hello.engine))
            for slot in {slot_of(stream_id) for stream_id in hello.stream_ids} & self._generation_of_slot.keys():
                self._abort_worker(slot, self._generation_of_slot[slot])  # died before this broker was there
        for stream_id in hello.stream_ids:
            self._unclaimed.pop(stream_id, None)
            if stream_id in self._given_up:  # too late: it goes on elsewhere, under another id
                self._given_up.remove(stream_id)
                abort = parcel.pack(Envelope(Kind.ABORT, stream_id), Abort(stream_id=stream_id))
                self._send_to_engine(hello.engine, abort)
            elif stream_id in self._early_aborts:
                self._send_to_engine(hello.engine, self._early_aborts[stream_id])
        if not self._waits_for_hello():
            self._early_aborts.clear()

    def _waits_for_hello(self) -> bool:
        """Whether an engine runs that has not introduced itself: this broker may be newer than it is."""
        return any(
            cell.is_alive and index not in self._admission.engines for index, cell in enumerate(self._engine_cells)
        )

    # ── from the fleet page ──────────────────────────────────────────────────────────────────────────────────────

    def _look_at_fleet(self) -> None:
        for index in list(self._admission.engines):
            cell = self._engine_cells[index]
            if not cell.is_alive or cell.generation != self._admission.engines[index].generation:
                self._lose_engine(index)
        for slot, cell in enumerate(self._worker_cells):
            # A dead worker's streams are aborted at once, not when its successor comes.
            generation = cell.generation if cell.is_alive else cell.generation + 1
            if self._generation_of_slot.get(slot) != generation:
                self._generation_of_slot[slot] = generation
                self._abort_worker(slot, generation)

    def _lose_engine(self, index: int) -> None:
        self._outgoing.pop(index, None)  # what was for it is lost with it
        by_slot: dict[int, list[int]] = defaultdict(list)
        for stream_id in self._admission.disconnect(index):
            by_slot[slot_of(stream_id)].append(stream_id)
        self._tell_lost(index, by_slot)
        for answered in self._fan_out.lose(index):
            self._tell_answered(answered)

    def _tell_lost(self, index: int, by_slot: dict[int, list[int]]) -> None:
        """And, if there is one, that another engine would take them."""
        other = next(iter(self._admission.engines), None)
        for slot, stream_ids in by_slot.items():
            self._send_to_worker(slot, Kind.ENGINE_LOST, EngineLost(engine=index, stream_ids=tuple(stream_ids)))
            if other is not None:
                self._send_to_worker(slot, Kind.ENGINE_READY, EngineReady(engine=other))

    def _abort_worker(self, slot: int, generation: int) -> None:
        if not self._admission.streams_of_slot(slot, generation):
            return
        packed = parcel.pack(Envelope(Kind.ABORT_WORKER), AbortWorker(slot=slot, generation=generation))
        for index in self._admission.engines:
            self._send_to_engine(index, packed)

    def _report_lost(self, now_s: float) -> None:
        """Streams that were in the old broker's hands when it died: no engine has them."""
        if not self._unclaimed:
            return
        by_slot: dict[int, list[int]] = defaultdict(list)
        for stream_id, lost_at_s in list(self._unclaimed.items()):
            if now_s >= lost_at_s:
                del self._unclaimed[stream_id]
                if self._admission.engine_of(stream_id) is None:
                    by_slot[slot_of(stream_id)].append(stream_id)
                    self._given_up.add(stream_id)
        self._tell_lost(-1, by_slot)
