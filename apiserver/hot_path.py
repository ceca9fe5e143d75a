"""The hot path: one token of a plain stream, from the record of an engine step to the client's socket.

A stream takes a lane here while its next token can go out as it is: the token's text stands ready in the token table, and
nothing waits in front of it in the transport. What a token then touches is its lane and the bytes it is made of, for in a
worker of hundreds of streams every object more is another miss of the cache. All other tokens, and those of a stream whose
socket is full, take the exact way through their sink.

The socket is written to directly, by a descriptor of the lane's own: a duplicate, because the connection's may be closed
and its number given to another client before anybody here is told. The transport is asked again as soon as the kernel
does not take everything.
"""

import os
from collections.abc import Callable, Sequence
from typing import Protocol


class Rider(Protocol):
    """Who a lane belongs to."""

    def on_blocked(self, rest: bytes) -> None:
        """The lane is closed. Of the last token's event the kernel did not take `rest`, which may be empty: then the
        connection is broken."""
        ...


class Lane:
    """One stream's way out. `count` and `last_s` are of the tokens that took it."""

    __slots__ = ("around", "count", "end", "fd", "last_s", "pieces", "prefix", "rider")

    def __init__(
        self, pieces: list[bytes | None], prefix: bytes, suffix: bytes, fd: int, last_s: float, rider: Rider
    ) -> None:
        """An event is prefix, piece, suffix; `fd` is the lane's own, which `HotPath.close` closes."""
        self.pieces, self.prefix, self.fd, self.rider = pieces, prefix, fd, rider
        self.end = _ENDS[suffix]
        self.around = len(prefix) + len(suffix)
        self.count, self.last_s = 0, last_s


def duplicate_or_none(fd: int) -> int | None:
    """A descriptor for a lane; None where the process may open no more."""
    try:
        return os.dup(fd)
    except OSError:
        return None


class HotPath:
    """All lanes of one worker."""

    def __init__(self, observe_itl: Callable[[float, int], object] = lambda _gap_s, _times: None) -> None:
        """`observe_itl` hears the time between two tokens of a stream, and how many streams had just that."""
        self._lanes: dict[int, Lane] = {}
        self._observe_itl = observe_itl

    def open(self, number: int, lane: Lane) -> None:
        """From now on the tokens of this stream take the lane."""
        self._lanes[number] = lane

    def close(self, number: int) -> None:
        """Back to the exact way. A stream without a lane is none the worse."""
        lane = self._lanes.pop(number, None)
        if lane is not None:
            os.close(lane.fd)

    def move(self, number: int, new_number: int) -> None:
        """The stream goes on under another number."""
        lane = self._lanes.pop(number, None)
        if lane is not None:
            self._lanes[new_number] = lane

    def deliver(self, numbers: Sequence[int], tokens: Sequence[int], now_s: float) -> list[tuple[int, int]]:
        """A token for each of these streams; returns those that have to take the exact way, as stream and token.

        A stream may stand here several times, its tokens in order: what is behind one that is returned is returned too.
        """
        lane_of, heads, write, join = self._lanes.get, CHUNK_HEADS, os.write, b"".join
        others: list[tuple[int, int]] = []
        left: set[int] = set()  # streams whose lane is open, but not before the next call
        run_s, run_length = 0.0, 0  # streams in a row that had their last token at the same moment
        for number, token in zip(numbers, tokens, strict=True):
            lane = lane_of(number)
            try:
                if lane is None:
                    others.append((number, token))
                    continue
                if (piece := lane.pieces[token]) is None or (left and number in left):
                    left.add(number)
                    others.append((number, token))
                    continue
                last_s = lane.last_s
                if last_s is run_s:
                    run_length += 1
                else:
                    if run_length:
                        self._observe_itl(now_s - run_s, run_length)
                    run_s, run_length = last_s, 1
                lane.last_s = now_s
                lane.count += 1
                event = join((heads[lane.around + len(piece)], lane.prefix, piece, lane.end))
                if (num_written := write(lane.fd, event)) != len(event):
                    self._block(number, event[num_written:])
            except BlockingIOError:
                self._block(number, event)
            except OSError:  # the client is gone, as its connection will say
                self._block(number, b"")
            except IndexError:  # no token of this model
                left.add(number)
                others.append((number, token))
        if run_length:
            self._observe_itl(now_s - run_s, run_length)
        return others

    def _block(self, number: int, rest: bytes) -> None:
        rider = self._lanes[number].rider
        self.close(number)
        rider.on_blocked(rest)


class _ChunkHeads(dict[int, bytes]):
    """The first line of an HTTP chunk by the number of bytes in it: tokens are short, so there are few."""

    def __missing__(self, num_bytes: int) -> bytes:
        head = self[num_bytes] = b"%x\r\n" % num_bytes
        return head


class _Ends(dict[bytes, bytes]):
    """What stands behind the text of every event, and ends its chunk: one object for all streams of a route."""

    def __missing__(self, suffix: bytes) -> bytes:
        end = self[suffix] = suffix + b"\r\n"
        return end


CHUNK_HEADS = _ChunkHeads()
_ENDS = _Ends()
