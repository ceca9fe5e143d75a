"""The front end's side of one vLLM engine core: the handshake, then requests out and outputs in, over ZMQ.

The engine says HELLO, is told where to connect (INIT), says what it is in its first message on the input socket, and READY.
From then on a request is two frames to it, and each of its steps one message of outputs. See `vllm/v1/engine/core.py`:
`startup_handshake`, `process_input_sockets`, `process_output_sockets`.

An engine core says HELLO once and waits for minutes. So the handshake's port is open only while an engine is waited for: the
HELLO of one that comes while another is served stays with it, until whoever serves next opens that port.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec
import zmq
from msgspec import Struct
from zmq.utils.monitor import recv_monitor_message

from engine_core.vllm.wire import ABORT, ADD, UTILITY
from ipc.sockets import has_message

logger = logging.getLogger(__name__)

POLL_MS = 200
PING_MS = 5_000  # how often ZMQ asks the engine core's ZMQ whether it is there, which computes nothing
SILENCE_MS = 30_000  # without an answer: its host is gone, or the way to it
_SNDMORE, _NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)


class EngineGone(Exception):
    """The engine core ended, or its connection did. What it ran is lost."""


Status = Literal["HELLO", "READY"]


class Word(Struct):
    """Of the handshake."""

    status: Status


class Facts(Struct):
    """EngineCoreReadyResponse, as far as it is read: what an engine core is once it has started."""

    vllm_version: str
    max_model_len: int
    num_gpu_blocks: int
    block_size: int
    supports_lora: bool | None = None  # 0.24 says nothing of this and the next
    max_num_seqs: int | None = None


class EngineLink:
    """Bound sockets; one engine core may connect."""

    def __init__(self, handshake_endpoint: str, input_endpoint: str, output_endpoint: str) -> None:
        """Raises zmq.ZMQError where one cannot be bound."""
        self._context = zmq.Context(io_threads=1)
        self._handshake = self._bound(zmq.ROUTER, handshake_endpoint)
        self.handshake_endpoint = self._handshake.getsockopt_string(zmq.LAST_ENDPOINT)  # with its port
        self._input = self._bound(zmq.ROUTER, input_endpoint)
        self.output = self._bound(zmq.PULL, output_endpoint)
        self._monitor = self._input.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._num_connections = 0
        self._connections: dict[int, int] = {}  # to the input, that there are: which one, by its descriptor
        self._engine = b""  # who said HELLO last
        self._engine_fd = self._engine_connection = -1

    def shake_hands(self, on_wait: Callable[[], None]) -> Facts:
        """Wait for an engine core to be ready; `on_wait` is called several times a second and may raise. One that says HELLO
        when another has is its successor. Raises EngineGone when it says something else than the protocol has."""
        facts: Facts | None = None
        is_ready = False
        poller = zmq.Poller()
        for socket in (self._handshake, self._input):
            poller.register(socket, zmq.POLLIN)
        while facts is None or not is_ready:
            poller.poll(POLL_MS)
            on_wait()
            if has_message(self._handshake):
                word = self._word_or_none()
                if word == "HELLO":
                    facts, is_ready = None, False
                is_ready = is_ready or word == "READY"
            elif (payload := self._input_of_engine_or_none()) is not None:
                facts = _facts(payload)
        self._handshake.close(linger=0)
        return facts

    def _word_or_none(self) -> Status | None:
        """The next word of the handshake, a HELLO answered; None when it is for others."""
        identity, *frames = self._handshake.recv_multipart()
        try:
            status = msgspec.msgpack.decode(b"".join(frames), type=Word).status
        except msgspec.MsgspecError as error:
            raise EngineGone(f"vLLM's word in the handshake is not understood: {error}") from None
        if status == "HELLO":
            self._welcome(identity)
        elif identity != self._engine:
            logger.error("a vLLM is ready that was told by another process where to connect: start it again")
            return None
        return status

    def _welcome(self, identity: bytes) -> None:
        if self._engine:
            logger.warning("vLLM says HELLO again: it was started anew before it was ready")
        self._engine = identity
        addresses = {
            "inputs": [self._input.getsockopt_string(zmq.LAST_ENDPOINT)],
            "outputs": [self.output.getsockopt_string(zmq.LAST_ENDPOINT)],
        }
        init = msgspec.msgpack.encode({"addresses": addresses, "parallel_config": {}})
        self._handshake.send_multipart([identity, init])

    def _input_of_engine_or_none(self) -> bytes | None:
        """What an engine core says on the input socket, which it does once: from then on this connection is the engine's."""
        self._note_connections()
        if not has_message(self._input):
            return None
        identity, *frames = self._input.recv_multipart(copy=False)
        fd = int(frames[-1].get(zmq.SRCFD))
        self._note_connections()  # its own too: ZMQ tells of it before it gives its messages
        if identity.bytes != self._engine or fd not in self._connections:
            logger.warning("a message on the input socket is nobody's", extra={"num_frames": len(frames)})
            return None
        self._engine_fd, self._engine_connection = fd, self._connections[fd]
        return b"".join(frame.bytes for frame in frames)

    def _note_connections(self) -> None:
        """Which there are. Often enough: ZMQ waits for whoever does not listen to this."""
        while has_message(self._monitor):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._num_connections += 1
                self._connections[event["value"]] = self._num_connections
            else:
                self._connections.pop(event["value"], None)

    def add(self, frame: bytes) -> None:
        self._send(ADD, frame)

    def abort(self, frame: bytes) -> None:
        self._send(ABORT, frame)

    def utility(self, frame: bytes) -> None:
        self._send(UTILITY, frame)

    def _send(self, kind: bytes, frame: bytes) -> None:
        """A third of what `send_multipart` takes for so little."""
        send = self._input.send
        send(self._engine, _SNDMORE)
        send(kind, _SNDMORE)
        send(frame)

    @property
    def fd(self) -> int:
        """Readable when `receive` may have something. Edge-triggered: `receive` all of it before the next wait."""
        return int(self.output.getsockopt(zmq.FD))

    def receive(self) -> Iterator[Sequence[bytes]]:
        """The frames of each message that has arrived; does not wait. Little is asked of ZMQ: its every answer costs."""
        output = self.output
        try:
            frame = output.recv(_NOBLOCK)
        except zmq.Again:
            return
        while True:
            yield (frame, *output.recv_multipart()) if output.getsockopt(zmq.RCVMORE) else (frame,)
            if not has_message(output):
                return
            frame = output.recv(_NOBLOCK)

    def check(self) -> None:
        """Raises EngineGone when the engine core is no longer connected. What others do at the port is nothing to it."""
        if self._input_of_engine_or_none() is not None:
            raise EngineGone("another engine core of vLLM came in the place of the one that was served")
        if self._connections.get(self._engine_fd) != self._engine_connection:
            raise EngineGone("vLLM's engine core closed its connection")

    def close(self) -> None:
        self._input.disable_monitor()
        self._monitor.close(linger=0)
        for socket in (self._handshake, self._input, self.output):
            socket.close(linger=200)
        self._context.term()

    def _bound(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # an engine that was restarted has the identity of the last one
            socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        socket.bind(endpoint)
        return socket


def _facts(payload: bytes) -> Facts:
    try:
        return msgspec.msgpack.decode(payload, type=Facts)
    except msgspec.MsgspecError as error:
        raise EngineGone(f"vLLM's first message is not understood: {error}") from None
