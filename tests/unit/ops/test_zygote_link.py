import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from ipc.handles import WorkerHandles
from ops import zygote
from ops.zygote_link import ForkFailed, ZygoteLink, ZygoteLost, ZygoteSilent
from ops.zygote_messages import LOADED, MAX_MESSAGE_BYTES, NOT_FORKED, Forked

HAS_LOADED = Forked(slot=-1, generation=0, pid=LOADED)


class FakeZygote:
    """The other end of a link, as a zygote holds it."""

    def __init__(self, link: ZygoteLink) -> None:
        self.socket = socket.socket(fileno=link.child_end.detach())
        self.socket.setblocking(False)

    def send(self, message: Forked) -> None:
        self.socket.send(msgspec.msgpack.encode(message))

    async def next_slot(self) -> int:
        encoded = await asyncio.get_running_loop().sock_recv(self.socket, MAX_MESSAGE_BYTES)
        return msgspec.msgpack.decode(encoded, type=WorkerHandles).slot

    def die(self) -> None:
        self.socket.close()


def handles(slot: int) -> WorkerHandles:
    return WorkerHandles(
        slot=slot, generation=1, listen_fds=(), doorbell_fd=0, ring_fds=(), fleet_fd=0, metrics_fds=(), metrics_index=0,
        broker_endpoint="",
    )  # fmt: skip


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_workers_are_asked_for_one_at_a_time_and_only_once_the_zygote_has_loaded() -> None:
    loaded: list[bool] = []

    async def scenario() -> None:
        link = ZygoteLink(on_loaded=lambda: loaded.append(True))
        zygote = FakeZygote(link)
        forks = [asyncio.create_task(link.fork(handles(slot))) for slot in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            zygote.socket.recv(MAX_MESSAGE_BYTES)

        zygote.send(HAS_LOADED)
        for slot in range(3):
            assert await zygote.next_slot() == slot
            with pytest.raises(BlockingIOError):
                zygote.socket.recv(MAX_MESSAGE_BYTES)
            zygote.send(Forked(slot=slot, generation=1, pid=100 + slot))

        assert await asyncio.gather(*forks) == [100, 101, 102]
        zygote.die()

    run(scenario)

    assert loaded == [True]


@pytest.mark.parametrize("has_loaded", [False, True])
def test_everybody_who_waits_hears_of_the_zygotes_death(has_loaded: bool) -> None:
    async def scenario() -> None:
        link = ZygoteLink(on_loaded=lambda: None)
        zygote = FakeZygote(link)
        forks = [asyncio.create_task(link.fork(handles(slot))) for slot in range(3)]
        if has_loaded:
            zygote.send(HAS_LOADED)
            await zygote.next_slot()

        zygote.die()

        for fork in forks:
            with pytest.raises(ZygoteLost):
                await fork
        with pytest.raises(ZygoteLost):
            await link.fork(handles(0))

    run(scenario)


def test_a_worker_that_the_dying_zygote_did_fork_is_known() -> None:
    async def scenario() -> None:
        link = ZygoteLink(on_loaded=lambda: None)
        zygote = FakeZygote(link)
        fork = asyncio.create_task(link.fork(handles(0)))
        zygote.send(HAS_LOADED)
        await zygote.next_slot()

        zygote.send(Forked(slot=0, generation=1, pid=77))
        zygote.die()

        assert await fork == 77

    run(scenario)


def test_a_fork_that_came_to_nothing_is_told_and_the_next_one_is_not_mistaken_for_it() -> None:
    async def scenario() -> None:
        link = ZygoteLink(on_loaded=lambda: None)
        zygote = FakeZygote(link)
        zygote.send(HAS_LOADED)
        failing = asyncio.create_task(link.fork(handles(0)))
        await zygote.next_slot()

        zygote.send(Forked(slot=0, generation=1, pid=NOT_FORKED))

        with pytest.raises(ForkFailed):
            await failing
        next_one = asyncio.create_task(link.fork(handles(1)))
        await zygote.next_slot()
        zygote.send(Forked(slot=0, generation=1, pid=NOT_FORKED))  # killed between its answer and its end
        zygote.send(Forked(slot=1, generation=1, pid=78))
        assert await next_one == 78
        zygote.die()

    run(scenario)


def test_a_zygote_that_does_not_answer_keeps_nobody_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.zygote_link.FORK_TIMEOUT_S", 0.02)

    async def scenario() -> None:
        link = ZygoteLink(on_loaded=lambda: None)
        zygote = FakeZygote(link)
        zygote.send(HAS_LOADED)

        for slot in range(2):
            with pytest.raises(ZygoteSilent):
                await link.fork(handles(slot))
        zygote.die()

    run(scenario)


def test_a_zygote_that_cannot_fork_says_so_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    of_the_worker: Any = None  # Any: plan and what is loaded are not looked at before
    supervisors, command = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    with supervisors, command:
        zygote._fork(of_the_worker, handles(2), of_the_worker, command)

        assert msgspec.msgpack.decode(supervisors.recv(MAX_MESSAGE_BYTES), type=Forked).pid == NOT_FORKED
