"""Workers come of the zygote in charge, whatever becomes of its successor. The zygotes here are small processes."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from config.settings import ServerSettings, Settings
from ipc.handles import WorkerHandles
from ops.children import Child
from ops.worker_set import CannotReplace
from ops.zygote_set import ZygoteSet

ROOT = Path(__file__).parents[3]
HANDLES = WorkerHandles(
    slot=0, generation=1, listen_fds=(), doorbell_fd=0, ring_fds=(), fleet_fd=0, metrics_fds=(), metrics_index=0,
    broker_endpoint="",
)  # fmt: skip
ZYGOTE = """
import os, socket, sys, time, msgspec
from ops.zygote_messages import LOADED, NOT_FORKED, Forked
way, fd = sys.argv[1], int(sys.argv[2])
if way == "cannot boot":
    raise SystemExit(3)
if way == "never loads":
    time.sleep(60)
command = socket.socket(fileno=fd)
answers = [NOT_FORKED] * 3 if way == "forks late" else []
def say(slot, generation, pid):
    command.send(msgspec.msgpack.encode(Forked(slot=slot, generation=generation, pid=pid)))
say(-1, 0, LOADED)
while command.recv(1 << 16):
    say(0, 1, answers.pop() if answers else os.getpid())
"""


class Zygotes:
    """The set under test, with zygotes that go the way their settings name, and answer with their own pid."""

    def __init__(self, way: str = "") -> None:
        self.num_refused = 0  # spawns that will be
        self._keepers: list[asyncio.Task[None]] = []
        self.set = ZygoteSet(self._spawn, self._keep, settings(way))
        self._keep(self.set.children[0])

    def _spawn(self, its: Settings, command_fd: int) -> int:
        if self.num_refused:
            self.num_refused -= 1
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        arguments = [sys.executable, "-c", ZYGOTE, its.server.host, str(command_fd)]
        process = subprocess.Popen(arguments, pass_fds=[command_fd], cwd=ROOT)
        process.returncode = 0  # reaped by ops.children
        return process.pid

    def _keep(self, child: Child) -> None:
        self._keepers.append(asyncio.create_task(child.keep()))

    async def pid(self) -> int:
        """Of the zygote that a worker came of."""
        return await asyncio.wait_for(self.set.fork(HANDLES), 10)

    async def stop(self) -> None:
        for child in self.set.children:
            child.stop(signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*self._keepers), 10)


def settings(way: str) -> Settings:
    return Settings(server=ServerSettings(host=way))


def run(scenario: Callable[[Zygotes], Coroutine[Any, Any, None]], way: str = "") -> None:
    async def with_zygotes() -> None:
        zygotes = Zygotes(way)
        try:
            await scenario(zygotes)
        finally:
            await zygotes.stop()

    asyncio.run(asyncio.wait_for(with_zygotes(), 40))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_successor_that_has_loaded_takes_charge_and_the_old_one_is_gone() -> None:
    async def scenario(zygotes: Zygotes) -> None:
        old = await zygotes.pid()

        await zygotes.set.replace(settings(""), 10)

        new = await zygotes.pid()
        assert new != old and [child.pid for child in zygotes.set.children] == [new]
        with pytest.raises(ProcessLookupError):
            os.kill(old, 0)

    run(scenario)


@pytest.mark.parametrize("way", ["cannot boot", "never loads"])
def test_workers_come_of_the_old_one_while_and_after_a_successor_fails(way: str) -> None:
    async def scenario(zygotes: Zygotes) -> None:
        old = await zygotes.pid()

        replacing = asyncio.create_task(zygotes.set.replace(settings(way), 1))
        await asyncio.sleep(0)
        assert len(zygotes.set.children) == 2
        assert await zygotes.pid() == old
        with pytest.raises(CannotReplace):
            await replacing

        assert await zygotes.pid() == old and len(zygotes.set.children) == 1

    run(scenario)


def test_an_old_one_that_dies_meanwhile_comes_back_by_itself_and_marks_only_itself_loaded() -> None:
    async def scenario(zygotes: Zygotes) -> None:
        old = await zygotes.pid()
        replacing = asyncio.create_task(zygotes.set.replace(settings("never loads"), 4))
        await asyncio.sleep(0)
        [old_child, successor] = zygotes.set.children

        os.kill(old, signal.SIGKILL)
        waiting = asyncio.create_task(zygotes.pid())
        await until(lambda: old_child.pid not in (old, None) and old_child.has_started)

        assert await waiting == old_child.pid and not successor.has_started
        with pytest.raises(CannotReplace):
            await replacing
        assert await zygotes.pid() == old_child.pid

    run(scenario)


@pytest.mark.parametrize("way", ["cannot boot", "never loads"])
def test_who_waits_for_an_old_one_gets_a_worker_of_its_successor(way: str) -> None:
    async def scenario(zygotes: Zygotes) -> None:
        [old_child] = zygotes.set.children
        waiting = asyncio.create_task(zygotes.pid())
        await until(lambda: old_child.has_given_up or (way == "never loads" and old_child.pid is not None))

        await zygotes.set.replace(settings(""), 10)

        [new] = zygotes.set.children
        assert await waiting == new.pid != old_child.pid

    run(scenario, way)


def test_a_spawn_that_is_refused_leaves_no_descriptor_behind_and_is_tried_again() -> None:
    async def scenario(zygotes: Zygotes) -> None:
        await zygotes.pid()
        num_fds = open_fds()

        zygotes.num_refused = 2
        await zygotes.set.replace(settings(""), 10)

        assert zygotes.num_refused == 0
        await until(lambda: open_fds() == num_fds)  # the old one's link ends with the next turns of the loop

    run(scenario)


def test_forks_that_fail_are_tried_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []

    def note_and_go_on(num_failures: int, _max_s: float) -> float:
        failures.append(num_failures)
        return 0.0

    monkeypatch.setattr("ops.zygote_set.backoff_s", note_and_go_on)

    async def scenario(zygotes: Zygotes) -> None:
        assert await zygotes.pid() == zygotes.set.children[0].pid

    run(scenario, way="forks late")

    assert failures == [1, 2, 3]
