"""Encoder and typed decoders of ipc.messages, built once."""

import msgspec

from ipc.messages import (
    Abort,
    AbortWorker,
    Announce,
    EngineHello,
    EngineLost,
    Generate,
    Message,
    Progress,
    Rejected,
)

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[Rejected | EngineLost] = msgspec.msgpack.Decoder(Rejected | EngineLost)
_to_engine: msgspec.msgpack.Decoder[Generate | Abort | AbortWorker] = msgspec.msgpack.Decoder(
    Generate | Abort | AbortWorker
)
_to_broker: msgspec.msgpack.Decoder[Announce | EngineHello | Progress] = msgspec.msgpack.Decoder(
    Announce | EngineHello | Progress
)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_for_worker(body: bytes) -> Rejected | EngineLost:
    """Raises msgspec.DecodeError, as its siblings do."""
    return _to_worker.decode(body)


def decode_for_engine(body: bytes) -> Generate | Abort | AbortWorker:
    return _to_engine.decode(body)


def decode_for_broker(body: bytes) -> Announce | EngineHello | Progress:
    return _to_broker.decode(body)
