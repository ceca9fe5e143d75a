"""How long the supervisor bears with silence; who hears of a death; what ends the fleet and what does not."""

import asyncio
import os
import select
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain

import pytest

from config.load import Configuration
from config.settings import EngineSettings, OpsSettings, ServerSettings, Settings
from ipc.fleet_page import State
from ops.exit_codes import CANNOT_BOOT, FAILED
from ops.resources import Resources
from ops.supervisor import Supervisor, silence_timeout_s
from ops.worker_set import CannotReplace

OPS = OpsSettings(heartbeat_timeout_s=2.0, engine_step_timeout_s=40.0, engine_start_timeout_s=900.0)


def test_only_an_engine_may_take_long_to_start() -> None:
    assert silence_timeout_s(OPS, State.STARTING, is_engine=True) == 900.0
    assert silence_timeout_s(OPS, State.STARTING, is_engine=False) == 30.0


def test_who_works_beats_and_an_engine_once_per_step() -> None:
    for state in (State.READY, State.DRAINING):
        assert silence_timeout_s(OPS, state, is_engine=False) == 2.0
        assert silence_timeout_s(OPS, state, is_engine=True) == 40.0


def dying(*_: object) -> Callable[[int], Awaitable[int]]:
    """Starts what ends at once and is not started again."""

    async def start(_generation: int) -> int:
        return os.posix_spawn(sys.executable, [sys.executable, "-c", f"raise SystemExit({CANNOT_BOOT})"], os.environ)

    return start


SETTINGS = Settings(
    server=ServerSettings(port=0),
    engine=EngineSettings(engines=2),
    ops=OpsSettings(ops_port=0, heartbeat_timeout_s=0.2),
)


@pytest.fixture
def resources() -> Iterator[Resources]:
    resources = Resources(SETTINGS, num_workers=2)
    yield resources
    resources.stop_listening()
    resources.ops_listener.close()
    resources.remove()


def supervisor_of(
    resources: Resources, reload: Callable[[], Configuration] = lambda: pytest.fail("nobody asks for this")
) -> Supervisor:
    return Supervisor(SETTINGS, resources, os.getpid(), reload)


def test_the_death_of_an_engine_or_a_worker_rings_the_broker(
    monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    monkeypatch.setattr(Supervisor, "_engine_starter", dying)
    monkeypatch.setattr(Supervisor, "_worker_starter", dying)
    bell, poller = resources.broker_bell, select.poll()
    poller.register(bell.fd, select.POLLIN)
    supervisor = supervisor_of(resources)

    rung = {}
    for child in chain(supervisor._engines, supervisor._workers.children):
        asyncio.run(asyncio.wait_for(child.keep(), 20))
        rung[child.title] = bool(poller.poll(0))
        bell.clear()

    assert rung == {"engine 0": True, "engine 1": True, "worker 0": True, "worker 1": True}


def test_an_engine_that_gives_up_ends_the_fleet_only_if_it_is_the_last(
    monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    monkeypatch.setattr(Supervisor, "_engine_starter", dying)
    supervisor = supervisor_of(resources)

    async def give_up_one_by_one() -> list[bool]:
        ends = []
        for engine in supervisor._engines:
            supervisor._keep(engine)
            while supervisor._keepers:
                await asyncio.sleep(0.01)
            ends.append(supervisor._has_failed.is_set())
        return ends

    assert asyncio.run(asyncio.wait_for(give_up_one_by_one(), 20)) == [False, True]


def test_a_successor_that_gives_up_is_a_failed_replacement_at_once_and_leaves_its_place(
    monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    monkeypatch.setattr(Supervisor, "_worker_starter", dying)
    supervisor = supervisor_of(resources)

    async def replace() -> None:
        with pytest.raises(CannotReplace):
            await supervisor._workers.replace_all(start_timeout_s=60, drain_timeout_s=60)
        while supervisor._keepers:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(replace(), 20))

    assert not supervisor._has_failed.is_set() and resources.page.workers[-1].is_vacant


def test_a_watch_that_crashes_ends_the_fleet_which_drains(
    monkeypatch: pytest.MonkeyPatch, resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Supervisor, "_keep", lambda *_: None)  # no processes
    supervisor = supervisor_of(resources)
    monkeypatch.setattr(supervisor._metrics, "publish", lambda: 1 / 0)

    assert asyncio.run(asyncio.wait_for(supervisor._run_fleet(), 20)) == FAILED

    assert "fleet stops: its watch crashed" in caplog.text and "ZeroDivisionError" in caplog.text
    assert resources.page.is_draining


def test_a_reload_that_crashes_is_told_and_the_next_one_is_tried(
    resources: Resources, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[int] = []

    def read_configuration() -> Configuration:
        read.append(1)
        raise TimeoutError("the driver does not answer")

    supervisor = supervisor_of(resources, read_configuration)

    async def reload_twice() -> None:
        supervisor._has_started.set()
        reloading = asyncio.create_task(supervisor._reload_when_told())
        for number in (1, 2):
            supervisor._should_reload.set()
            while caplog.text.count("reload failed") < number:
                await asyncio.sleep(0.01)
        reloading.cancel()

    asyncio.run(asyncio.wait_for(reload_twice(), 20))

    assert len(read) == 2 and "the driver does not answer" in caplog.text


def test_the_loop_turns_while_the_configuration_is_read_and_what_reads_is_no_stranger(
    monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    reaped: list[object] = []
    monkeypatch.setattr("ops.supervisor.reap_strangers", reaped.append)
    has_turned = threading.Event()

    def read_configuration() -> Configuration:
        assert has_turned.wait(10), "the loop stands still"
        raise TimeoutError

    supervisor = supervisor_of(resources, read_configuration)

    async def reload() -> None:
        reloading = asyncio.create_task(supervisor._reload())
        await asyncio.sleep(0)
        supervisor._reap_strangers()
        assert not reaped
        has_turned.set()
        await reloading
        supervisor._reap_strangers()

    asyncio.run(asyncio.wait_for(reload(), 20))

    assert len(reaped) == 1
