"""What supervisor and zygote say to each other over their socket pair: WorkerHandles one way, Forked the other. A module of
its own, because the supervisor must not import what the zygote loads."""

from msgspec import Struct

MAX_MESSAGE_BYTES = 1 << 16


class Forked(Struct, frozen=True):
    """The answer to one command; the first message of a zygote has pid 0 and means "loaded"."""

    slot: int
    pid: int
