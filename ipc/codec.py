"""Encoder and typed decoders of ipc.messages, built once."""

import msgspec

from ipc.messages import Announce, EngineHello, ForEngine, ForWorker, Message, Progress

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ForWorker] = msgspec.msgpack.Decoder(ForWorker)
_to_engine: msgspec.msgpack.Decoder[ForEngine] = msgspec.msgpack.Decoder(ForEngine)
_to_broker: msgspec.msgpack.Decoder[Announce | EngineHello | Progress] = msgspec.msgpack.Decoder(
    Announce | EngineHello | Progress
)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_for_worker(body: bytes) -> ForWorker:
    """Raises msgspec.DecodeError, as its siblings do."""
    return _to_worker.decode(body)


def decode_for_engine(body: bytes) -> ForEngine:
    return _to_engine.decode(body)


def decode_for_broker(body: bytes) -> Announce | EngineHello | Progress:
    return _to_broker.decode(body)
