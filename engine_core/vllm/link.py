"""The front end's side of one vLLM engine core: the handshake, then requests out and outputs in, over ZMQ.

The engine says HELLO, is told where to connect (INIT), says what it is in its first message on the input socket, and READY.
From then on a request is two frames to it, and each of its steps one message of outputs. See `vllm/v1/engine/core.py`:
`startup_handshake`, `process_input_sockets`, `process_output_sockets`.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import zmq
from msgspec import Struct

from engine_core.vllm.wire import ABORT, ADD, UTILITY
from ipc.sockets import has_message

POLL_MS = 200
_SNDMORE, _NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)


class EngineGone(Exception):
    """The engine core ended, or its connection did. What it ran is lost."""


class Hello(Struct):
    status: str


class Facts(Struct):
    """EngineCoreReadyResponse, as far as it is read: what an engine core is once it has started."""

    vllm_version: str
    max_model_len: int
    num_gpu_blocks: int
    block_size: int
    supports_lora: bool | None = None  # 0.24 does not say


class EngineLink:
    """Bound sockets; one engine core may connect."""

    def __init__(self, handshake_endpoint: str, input_endpoint: str, output_endpoint: str) -> None:
        """Raises zmq.ZMQError where one cannot be bound."""
        self._context = zmq.Context(io_threads=1)
        self._handshake = self._bound(zmq.ROUTER, handshake_endpoint)
        self._input = self._bound(zmq.ROUTER, input_endpoint)
        self.output = self._bound(zmq.PULL, output_endpoint)
        self._monitor = self._input.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._engine = b""

    @property
    def handshake_endpoint(self) -> str:
        """As it was bound, with its port."""
        return self._handshake.getsockopt_string(zmq.LAST_ENDPOINT)

    def shake_hands(self, on_wait: Callable[[], None]) -> Facts:
        """Wait for an engine core to be ready; `on_wait` is called several times a second and may raise. Raises EngineGone
        when it says something else than the protocol has."""
        identity = self._hello("HELLO", on_wait)
        addresses = {
            "inputs": [self._input.getsockopt_string(zmq.LAST_ENDPOINT)],
            "outputs": [self.output.getsockopt_string(zmq.LAST_ENDPOINT)],
        }
        init = msgspec.msgpack.encode({"addresses": addresses, "parallel_config": {}})
        self._handshake.send_multipart([identity, init])
        _wait(self._input, on_wait)
        self._engine, payload = self._input.recv_multipart()
        try:
            facts = msgspec.msgpack.decode(payload, type=Facts)
        except msgspec.MsgspecError as error:
            raise EngineGone(f"vLLM's first message is not understood: {error}") from None
        self._hello("READY", on_wait)
        return facts

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
        """Raises EngineGone when the engine core is no longer connected."""
        if self._monitor.poll(0):
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
        socket.bind(endpoint)
        return socket

    def _hello(self, status: str, on_wait: Callable[[], None]) -> bytes:
        """The next word of the handshake, which must be this one; who said it."""
        _wait(self._handshake, on_wait)
        identity, payload = self._handshake.recv_multipart()
        try:
            hello = msgspec.msgpack.decode(payload, type=Hello)
        except msgspec.MsgspecError as error:
            raise EngineGone(f"vLLM's {status} is not understood: {error}") from None
        if hello.status != status:
            raise EngineGone(f"vLLM said {hello.status} where {status} was expected")
        return identity


def _wait(socket: "zmq.Socket[bytes]", on_wait: Callable[[], None]) -> None:
    while not socket.poll(POLL_MS):
        on_wait()
