"""Encoder and typed decoders of ipc.messages, built once."""

import msgspec

from ipc.messages import ForBroker, ForEngine, ForWorker, Message

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ForWorker] = msgspec.msgpack.Decoder(ForWorker)
_to_engine: msgspec.msgpack.Decoder[ForEngine] = msgspec.msgpack.Decoder(ForEngine)
_to_broker: msgspec.msgpack.Decoder[ForBroker] = msgspec.msgpack.Decoder(ForBroker)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode_for_worker(body: bytes) -> ForWorker:
    """Raises msgspec.DecodeError, as its siblings do."""
    return _to_worker.decode(body)


def decode_for_engine(body: bytes) -> ForEngine:
    return _to_engine.decode(body)


def decode_for_broker(body: bytes) -> ForBroker:
    return _to_broker.decode(body)
