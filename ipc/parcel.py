"""What a ZMQ connection of the fleet carries: frames of parcels, each an envelope, a body and for some a prompt.

A frame holds any number of parcels end to end, so that what one turn of a loop has to say costs one message on every hop,
however many requests it is: ZMQ's price is per message and frame, not per byte. Layout of a parcel, little endian:

    offset  size          field
         0     4          body size
         4     4          prompt size
         8    44          ipc.messages.Envelope
        52  body size     MessagePack (ipc.codec)
         …  prompt size   token ids as u32, behind a Generate only
"""

import struct
from collections.abc import Iterator

from ipc.codec import encode
from ipc.messages import Envelope, Message

_SIZES = struct.Struct("<II")
_BODY_AT = 52


def pack(envelope: Envelope, message: Message, prompt: bytes = b"") -> bytes:
    body = encode(message)
    return b"".join((_SIZES.pack(len(body), len(prompt)), envelope.pack(), body, prompt))


def split(frame: bytes) -> Iterator[bytes]:
    """The parcels of a frame. Raises ValueError when it ends inside one."""
    start = 0
    while start < len(frame):
        if len(frame) - start < _BODY_AT:
            raise ValueError(f"{len(frame) - start} bytes behind the last whole parcel")
        body_size, prompt_size = _SIZES.unpack_from(frame, start)
        end = start + _BODY_AT + body_size + prompt_size
        if end > len(frame):
            raise ValueError(f"a parcel of {end - start} bytes in the last {len(frame) - start} of its frame")
        yield frame[start:end] if start or end < len(frame) else frame
        start = end


def envelope_of(parcel: bytes) -> Envelope:
    """Raises ValueError for another protocol version."""
    return Envelope.unpack(parcel[8:_BODY_AT])


def body_of(parcel: bytes) -> bytes:
    return parcel[_BODY_AT : _BODY_AT + int.from_bytes(parcel[:4], "little")]


def prompt_of(parcel: bytes) -> bytes:
    return parcel[_BODY_AT + int.from_bytes(parcel[:4], "little") :]
