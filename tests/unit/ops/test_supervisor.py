"""How long the supervisor bears with silence; who hears of a death."""

import asyncio
import os
import select
import sys
from collections.abc import Awaitable, Callable
from itertools import chain

import pytest

from config.settings import OpsSettings, ServerSettings, Settings
from ipc.fleet_page import State
from ops.exit_codes import CANNOT_BOOT
from ops.resources import Resources
from ops.supervisor import Supervisor, silence_timeout_s

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


def test_the_death_of_an_engine_or_a_worker_rings_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_engine_starter", dying)
    monkeypatch.setattr(Supervisor, "_worker_starter", dying)
    settings = Settings(server=ServerSettings(port=0), ops=OpsSettings(ops_port=0))
    resources = Resources(settings, num_workers=2)
    bell, poller = resources.broker_bell, select.poll()
    poller.register(bell.fd, select.POLLIN)
    supervisor = Supervisor(settings, resources, os.getpid(), reload=lambda: pytest.fail("nobody asks for this"))

    rung = {}
    for child in chain(supervisor._engines, supervisor._workers.children):
        asyncio.run(asyncio.wait_for(child.keep(), 20))
        rung[child.title] = bool(poller.poll(0))
        bell.clear()

    assert rung == {"engine 0": True, "worker 0": True, "worker 1": True}
    resources.stop_listening()
    resources.ops_listener.close()
    resources.remove()
