"""What supervisor and zygote say to each other over their socket pair: WorkerHandles one way, Forked the other. A module of
its own, because the supervisor must not import what the zygote loads."""

from msgspec import Struct

MAX_MESSAGE_BYTES = 1 << 16


LOADED = 0  # instead of a pid, in the first message of a zygote
NOT_FORKED = -1  # instead of a pid: the process in between failed, or was killed


class Forked(Struct, frozen=True):
    """The answer to one command."""

    slot: int
    generation: int
    pid: int
