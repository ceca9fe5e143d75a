"""The worker's and the engine's socket to the broker: a DEALER that introduces itself on every (re)connection.

A broker that died and came back knows nobody. ZMQ reconnects by itself; the socket's monitor tells that it did, and the
next `receive` sends the introduction: who this is and which streams it has in flight. Nothing else needs to know
that the broker was away. Sends never block: ZMQ queues while the broker is gone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import zmq

from ipc import parcel
from ipc.codec import decode_for_engine, decode_for_worker
from ipc.messages import (
    PROTOCOL_VERSION,
    Announce,
    EngineHello,
    Envelope,
    ForEngine,
    ForWorker,
    FromEngine,
    FromWorker,
    Kind,
    Progress,
)

_POLLIN = int(zmq.POLLIN)  # as an enum its `&` is Python code


class Inbound(NamedTuple):
    """One message for an engine; `prompt` is empty unless it is a Generate, or a Resume with its output behind it."""

    message: ForEngine
    prompt: bytes


class _IntroducingDealer:
    """A DEALER socket plus the monitor that sees its handshakes."""

    def __init__(self, endpoint: str, identity: bytes, introduce: Callable[[], None]) -> None:
        self._context = zmq.Context(io_threads=1)
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._introduce = introduce
        self.socket.connect(endpoint)

    def introduce_if_reconnected(self) -> bool:
        """After a handshake say who this is. What arrived before it must have been handled by the caller already, and what
        arrives while this is said has no edge of its own: `receive_parcels` again."""
        has_connected = False
        while has_message(self._monitor):
            self._monitor.recv_multipart(zmq.NOBLOCK)
            has_connected = True
        if has_connected:
            self._introduce()
        return has_connected

    def receive_parcels(self) -> Iterator[bytes]:
        """What has arrived; does not wait."""
        while has_message(self.socket):
            yield from parcel.split(self.socket.recv(zmq.NOBLOCK))

    def close(self) -> None:
        self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self.socket.close()
        self._context.term()


def has_message(socket: "zmq.Socket[bytes]") -> bool:
    """Asking costs less than the exception of a receive in vain."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & _POLLIN)


class WorkerSocket:
    """A worker's way to the broker. `in_flight` names the streams to announce to a broker that is new."""

    def __init__(
        self, endpoint: str, slot: int, generation: int, in_flight: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._slot, self._generation, self._in_flight = slot, generation, in_flight
        identity = b"w" + slot.to_bytes(2, "little") + generation.to_bytes(4, "little")
        self._dealer = _IntroducingDealer(endpoint, identity, self._announce)
        self._socket = self._dealer.socket
        self._outgoing: list[bytes] = []

    @property
    def fd(self) -> int:
        """Readable when `receive` may have something. Edge-triggered: `receive` after every wake and every flush."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, envelope: Envelope, message: FromWorker, prompt: bytes | None = None) -> None:
        """Put one message down; it leaves with the next `flush`."""
        self._outgoing.append(parcel.pack(envelope, message, prompt or b""))

    def flush(self) -> None:
        """Hand everything to ZMQ as one frame; never blocks."""
        if self._outgoing:
            frame, self._outgoing = b"".join(self._outgoing), []
            self._socket.send(frame)

    def receive(self) -> list[ForWorker]:
        """Everything that has arrived; also the place where a new broker gets its introduction. Never blocks."""
        messages = self._messages()
        if self._dealer.introduce_if_reconnected():
            messages += self._messages()
        return messages

    def _messages(self) -> list[ForWorker]:
        return [decode_for_worker(parcel.body_of(received)) for received in self._dealer.receive_parcels()]

    def close(self) -> None:
        self.flush()
        self._dealer.close()

    def _announce(self) -> None:
        announce = Announce(slot=self._slot, generation=self._generation, stream_ids=tuple(self._in_flight()))
        self._socket.send(parcel.pack(Envelope(Kind.ANNOUNCE), announce))


class EngineSocket:
    """An engine's way to the broker. `running` names the streams it holds, for a broker that is new."""

    def __init__(
        self, endpoint: str, index: int, generation: int, running: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._index, self._generation, self._running = index, generation, running
        identity = b"e" + index.to_bytes(2, "little") + generation.to_bytes(4, "little")
        self._dealer = _IntroducingDealer(endpoint, identity, self._hello)
        self._socket = self._dealer.socket

    @property
    def fd(self) -> int:
        """Readable when `receive` may have something. Edge-triggered: `receive` after every wake, and where `has_message`
        says so after a `send`."""
        return int(self._socket.getsockopt(zmq.FD))

    @property
    def has_message(self) -> bool:
        return has_message(self._socket)

    def receive(self, timeout_ms: int) -> list[Inbound]:
        """Everything that has arrived, waiting up to `timeout_ms` for the first message (0: do not wait).

        A hello after a reconnection is sent at the start, when the caller has taken in all that arrived before.
        """
        self._dealer.introduce_if_reconnected()
        if timeout_ms and not self._socket.poll(timeout_ms):
            return []
        return [
            Inbound(decode_for_engine(parcel.body_of(received)), parcel.prompt_of(received))
            for received in self._dealer.receive_parcels()
        ]

    def send(self, message: FromEngine) -> None:
        """Queue one message; never blocks."""
        kind = Kind.PROGRESS if isinstance(message, Progress) else Kind.ENGINE_ANSWER
        self._socket.send(parcel.pack(Envelope(kind), message))

    def close(self) -> None:
        self._dealer.close()

    def _hello(self) -> None:
        hello = EngineHello(
            engine=self._index,
            generation=self._generation,
            protocol_version=PROTOCOL_VERSION,
            stream_ids=tuple(self._running()),
        )
        self._socket.send(parcel.pack(Envelope(Kind.ENGINE_HELLO), hello))
