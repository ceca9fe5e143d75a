"""Lanes over real sockets: whole chunks in order, and everything that is not plain goes the exact way."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiserver.hot_path import HotPath, Lane, duplicate_or_none

PIECES: list[bytes | None] = [b"a", b"bc", None, b"\\n"]
SPECIAL = 2
PREFIX, SUFFIX = b'data: {"', b'"}\n\n'


@dataclass
class Client:
    """One stream: its connection, and what its rider hears."""

    ours: socket.socket
    theirs: socket.socket
    blocked: list[bytes] = field(default_factory=list)

    def on_blocked(self, rest: bytes) -> None:
        self.blocked.append(rest)

    def lane(self, last_s: float = 0.0) -> Lane:
        fd = duplicate_or_none(self.ours.fileno())
        assert fd is not None
        return Lane(PIECES, PREFIX, SUFFIX, fd, last_s, self)

    def received(self) -> bytes:
        try:
            return self.theirs.recv(1 << 20)
        except BlockingIOError:
            return b""


@contextmanager
def connected(count: int) -> Iterator[list[Client]]:
    made = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        made.append(Client(ours, theirs))
    try:
        yield made
    finally:
        for client in made:
            client.ours.close()
            client.theirs.close()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    with connected(3) as made:
        yield made


def chunk(text: bytes) -> bytes:
    event = PREFIX + text + SUFFIX
    return b"%x\r\n%b\r\n" % (len(event), event)


def test_each_stream_gets_its_token_as_one_chunk(clients: list[Client]) -> None:
    path = HotPath()
    for number, client in enumerate(clients):
        path.open(number, client.lane())

    others = path.deliver([0, 1, 2], [0, 1, 3], 1.0)
    others += path.deliver([0, 2], [1, 0], 2.0)

    assert others == []
    assert [client.received() for client in clients] == [
        chunk(b"a") + chunk(b"bc"), chunk(b"bc"), chunk(b"\\n") + chunk(b"a"),
    ]  # fmt: skip


def test_what_is_not_plain_takes_the_exact_way(clients: list[Client]) -> None:
    path = HotPath()
    lane = clients[0].lane()
    path.open(0, lane)

    others = [path.deliver(*step, 1.0) for step in (([0, 9], [SPECIAL, 0]), ([0], [4]), ([0], [0]))]

    assert others == [[(0, SPECIAL), (9, 0)], [(0, 4)], []], "no text of its own, no lane, no token of this model"
    assert clients[0].received() == chunk(b"a")
    assert lane.count == 1


@given(steps=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12), max_size=4))
def test_several_tokens_of_a_stream_keep_their_order(steps: list[list[tuple[int, int]]]) -> None:
    with connected(3) as clients:  # the fourth stream has no lane
        path = HotPath()
        for number, client in enumerate(clients):
            path.open(number, client.lane())
        for step in steps:
            others = path.deliver([number for number, _ in step], [token for _, token in step], 1.0)

            received = [client.received() for client in clients] + [b""]
            for number in range(4):
                tokens = [token for stream, token in step if stream == number]
                exact = [token for stream, token in others if stream == number]
                plain = tokens[: len(tokens) - len(exact)]
                assert plain + exact == tokens, "what takes the exact way is written behind what is written here"
                assert received[number] == b"".join(chunk(PIECES[token] or b"?") for token in plain)
        for number in range(3):
            path.close(number)


def test_a_full_socket_closes_the_lane_and_loses_nothing(clients: list[Client]) -> None:
    client, path = clients[0], HotPath()
    client.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    path.open(0, client.lane())

    num_written = 0
    while not client.blocked:
        assert path.deliver([0], [1], 1.0) == []
        num_written += 1
    [rest] = client.blocked
    received = b""
    while piece := client.received():
        received += piece

    assert received + rest == chunk(b"bc") * num_written
    assert path.deliver([0], [1], 2.0) == [(0, 1)], "the lane is closed"


def test_a_broken_connection_ends_its_own_lane_alone(clients: list[Client]) -> None:
    path = HotPath()
    for number, client in enumerate(clients):
        path.open(number, client.lane())
    clients[1].theirs.close()

    assert path.deliver([0, 1, 2], [0, 0, 0], 1.0) == []

    assert clients[1].blocked == [b""]
    assert [clients[0].received(), clients[2].received()] == [chunk(b"a")] * 2


def test_a_lane_never_writes_to_who_got_the_number_of_its_socket(clients: list[Client]) -> None:
    first, second, path = clients[0], clients[1], HotPath()
    path.open(0, first.lane())
    number_of_socket = first.ours.fileno()
    first.ours.close()
    taken = os.dup(second.ours.fileno())
    assert taken == number_of_socket, "the kernel gives the lowest free number"

    path.deliver([0], [0], 1.0)

    assert second.received() == b""
    assert first.received() == chunk(b"a")
    os.close(taken)


def test_closing_a_lane_closes_its_descriptor(clients: list[Client]) -> None:
    path = HotPath()
    lane = clients[0].lane()
    path.open(0, lane)

    path.close(0)
    path.close(0)

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lane.fd)


def test_a_stream_keeps_its_lane_under_a_new_number(clients: list[Client]) -> None:
    path = HotPath()
    path.open(0, clients[0].lane())

    path.move(0, 7)

    assert path.deliver([0, 7], [0, 1], 1.0) == [(0, 0)]
    assert clients[0].received() == chunk(b"bc")


def test_gaps_are_told_once_for_all_streams_that_waited_equally(clients: list[Client]) -> None:
    told: list[tuple[float, int]] = []
    path = HotPath(lambda gap_s, times: told.append((round(gap_s, 6), times)))
    for number, client in enumerate(clients):
        path.open(number, client.lane(last_s=0.5 if number < 2 else 0.25))

    path.deliver([0, 1, 2], [0, 0, 0], 1.0)
    path.deliver([0, 1, 2], [0, 0, 0], 1.5)

    assert sorted(told) == [(0.5, 2), (0.5, 3), (0.75, 1)]
