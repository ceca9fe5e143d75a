import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from ipc.fleet_page import Cell, FleetPage, State
from ipc.metrics_page import Instrument, MetricsReader, MetricsWriter, create_metrics_segment
from ops.children import MAX_FAILED_STARTS, Child, Exit, reap_strangers, wait_for_exit


@pytest.fixture
def cell() -> Cell:
    return FleetPage(FleetPage.create_segment(1, 1).view).engines[0]


def spawner(code: str, cell: Cell | None = None, pids: list[int] | None = None) -> Callable[[int], Awaitable[int]]:
    """Processes that run `code`; with a cell, ones that were READY."""

    async def spawn(_generation: int) -> int:
        process = subprocess.Popen([sys.executable, "-S", "-c", code])
        process.returncode = 0  # reaped by ops.children
        if cell is not None:
            cell.state = State.READY
        if pids is not None:
            pids.append(process.pid)
        return process.pid

    return spawn


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(7)", Exit(7, None)),
        ("import os; os.kill(os.getpid(), 9)", Exit(None, signal.SIGKILL)),
    ],
)
def test_an_exit_says_how(code: str, expected: Exit) -> None:
    async def reap() -> Exit:
        return await wait_for_exit(await spawner(code)(1))

    assert asyncio.run(reap()) == expected


def test_gauges_of_a_dead_process_are_cleared_and_its_counters_stay(cell: Cell) -> None:
    view = create_metrics_segment("worker").view
    instruments = [Instrument("gauge", "streams", "Now."), Instrument("counter", "requests", "Ever.")]

    async def spawn_with_streams(generation: int) -> int:
        writer = MetricsWriter(view, instruments)
        writer.gauge("streams").set(3)
        writer.counter("requests").inc(4)
        return await spawner("raise SystemExit(3)")(generation)

    child = Child("worker 0", cell, spawn_with_streams, max_backoff_s=0.01, metrics=view)
    asyncio.run(asyncio.wait_for(child.keep(), 20))

    reader = MetricsReader(view)
    assert {series.instrument.name: reader.slots(series)[0] for series in reader.series()} == {
        "streams": 0,
        "requests": 4,
    }


def test_a_death_is_told_when_the_page_has_it(cell: Cell) -> None:
    told: list[bool] = []
    child = Child(
        "worker 0",
        cell,
        spawner("raise SystemExit(3)"),
        max_backoff_s=0.01,
        on_death=lambda: told.append(cell.is_alive),
    )

    asyncio.run(asyncio.wait_for(child.keep(), 20))

    assert told == [False]


def test_who_was_told_to_leave_leaves_a_vacant_place_even_if_it_had_to_be_killed(cell: Cell) -> None:
    child = Child("worker 0", cell, spawner("import signal; signal.pause()", cell), max_backoff_s=0.01)

    async def stop_the_deaf() -> None:
        keeper = asyncio.create_task(child.keep())
        while child.pid is None:
            await asyncio.sleep(0.01)
        assert cell.state == State.READY
        child.stop(signal.SIGKILL)
        await keeper

    asyncio.run(asyncio.wait_for(stop_the_deaf(), 20))

    assert cell.is_vacant


def test_exit_code_3_is_not_retried(cell: Cell) -> None:
    pids: list[int] = []
    child = Child("engine 0", cell, spawner("raise SystemExit(3)", pids=pids), max_backoff_s=0.01)

    asyncio.run(asyncio.wait_for(child.keep(), 20))

    assert child.has_given_up and len(pids) == 1 and not cell.is_alive


def test_a_process_that_never_becomes_ready_is_given_up(cell: Cell) -> None:
    pids: list[int] = []
    child = Child("engine 0", cell, spawner("raise SystemExit(1)", pids=pids), max_backoff_s=0.01)

    asyncio.run(asyncio.wait_for(child.keep(), 20))

    assert child.has_given_up and len(pids) == MAX_FAILED_STARTS == cell.generation


def test_a_spawn_that_the_kernel_refuses_is_tried_again_as_after_a_failed_start(cell: Cell) -> None:
    pids: list[int] = []
    die = spawner("raise SystemExit(3)", pids=pids)
    refused: list[bool] = []

    async def spawn(generation: int) -> int:
        if generation < MAX_FAILED_STARTS:
            refused.append(child.is_spawning)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await die(generation)

    child = Child("engine 0", cell, spawn, max_backoff_s=0.01)
    asyncio.run(asyncio.wait_for(child.keep(), 20))

    assert refused == [True] * (MAX_FAILED_STARTS - 1) and len(pids) == 1
    assert child.has_given_up and not child.is_spawning and not cell.is_alive


def test_spawns_that_are_refused_again_and_again_are_given_up(cell: Cell) -> None:
    async def spawn(_generation: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    child = Child("engine 0", cell, spawn, max_backoff_s=0.01)
    asyncio.run(asyncio.wait_for(child.keep(), 20))

    assert child.has_given_up and not child.is_spawning and cell.generation == MAX_FAILED_STARTS


def test_who_gave_up_and_is_told_to_leave_leaves_a_vacant_place(cell: Cell) -> None:
    child = Child("worker 0", cell, spawner("raise SystemExit(3)"), max_backoff_s=0.01)
    asyncio.run(asyncio.wait_for(child.keep(), 20))
    assert not cell.is_vacant

    child.stop()

    assert cell.is_vacant


def test_a_long_start_is_no_work(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads for a minute and dies at its first step, again and again."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr("ops.children.time", SimpleNamespace(monotonic=lambda: clock.now_s))
    child = Child("engine 0", cell, spawner("import signal; signal.pause()"), max_backoff_s=10.0)
    pause_s, pauses = child._pause_s, list[float]()

    def note_and_go_on(worked_s: float) -> float:
        pauses.append(pause_s(worked_s))
        return 0.0

    monkeypatch.setattr(child, "_pause_s", note_and_go_on)

    async def die(load_s: float, work_s: float) -> None:
        deaths = len(pauses)
        while child.pid is None or cell.state != State.STARTING:
            await asyncio.sleep(0.01)
        child.look()
        clock.now_s += load_s
        cell.state = State.READY
        child.look()
        clock.now_s += work_s
        child.look()
        child.send(signal.SIGKILL)
        while len(pauses) == deaths:
            await asyncio.sleep(0.01)

    async def die_often() -> None:
        keeper = asyncio.create_task(child.keep())
        for work_s in (1.0, 1.0, 1.0, 11.0, 1.0):
            await die(60.0, work_s)
        child.stop()
        await keeper

    asyncio.run(asyncio.wait_for(die_often(), 20))

    assert pauses == [0.0, 0.5, 1.0, 0.0, 0.0]


def test_a_process_that_was_ready_is_replaced_for_ever_until_stopped(cell: Cell) -> None:
    pids: list[int] = []
    child = Child("engine 0", cell, spawner("raise SystemExit(1)", cell, pids), max_backoff_s=0.001)

    async def keep_a_while() -> None:
        keeper = asyncio.create_task(child.keep())
        while len(pids) < MAX_FAILED_STARTS + 2:
            await asyncio.sleep(0.01)
        child.stop()
        await keeper

    asyncio.run(asyncio.wait_for(keep_a_while(), 30))

    assert not child.has_given_up and child.pid is None
    assert cell.generation == len(pids) and cell.restarts == len(pids) - 1


def test_a_stuck_process_is_killed_when_it_survives_sigabrt(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.children.KILL_AFTER_ABORT_S", 0.05)
    pids: list[int] = []
    child = Child("worker 0", cell, spawner("import signal; signal.pause()", cell, pids), max_backoff_s=0.01)
    before = signal.signal(signal.SIGABRT, signal.SIG_IGN)  # which an exec'ed process inherits

    async def abort_once() -> None:
        keeper = asyncio.create_task(child.keep())
        while not pids or child.pid is None:
            await asyncio.sleep(0.01)
        await child.abort("no heartbeat")
        while len(pids) < 2:
            await asyncio.sleep(0.01)
        child.stop(signal.SIGKILL)
        await keeper

    try:
        asyncio.run(asyncio.wait_for(abort_once(), 20))
    finally:
        signal.signal(signal.SIGABRT, before)

    assert cell.generation == 2


@pytest.mark.parametrize("does_load", [True, False])
def test_a_process_without_a_cell_is_given_up_only_if_it_never_loads(does_load: bool) -> None:
    pids: list[int] = []
    die = spawner("raise SystemExit(1)", pids=pids)

    async def load_and_die(generation: int) -> int:
        if does_load:
            child.mark_loaded()
        if len(pids) > MAX_FAILED_STARTS:
            child.stop()
        return await die(generation)

    child = Child("zygote", None, load_and_die, max_backoff_s=0.001)

    asyncio.run(asyncio.wait_for(child.keep(), 30))

    assert child.has_given_up is not does_load


def test_a_stranger_is_reaped_and_an_own_child_is_not() -> None:
    def ended_child() -> int:
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        process.returncode = 0  # reaped here
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process.pid

    stranger = ended_child()
    reap_strangers(set())
    own = ended_child()
    reap_strangers({own})

    with pytest.raises(ChildProcessError):
        os.waitpid(stranger, os.WNOHANG)
    assert os.waitpid(own, os.WNOHANG)[0] == own


def test_early_deaths_are_answered_at_once_then_ever_later(cell: Cell) -> None:
    child = Child("worker 0", cell, spawner(""), max_backoff_s=3.0)
    cell.begin_generation(1)

    assert [child._pause_s(1.0) for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert child._pause_s(60.0) == 0.0
    assert child._pause_s(1.0) == 0.0
