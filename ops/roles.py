"""The processes of a fleet that are exec'ed: how each is started, and what the started one runs."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ops import exit_codes, logs
from ops.plan import BrokerPlan, EnginePlan, Plan, PreparePlan, ZygotePlan, store_plan, take_plan
from ops.process_control import Orphaned, begin_role
from ops.resources import fds_of

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]


def start(role: str, plan: Plan, fds: Iterable[int] = ()) -> "subprocess.Popen[bytes]":
    """Start `role` in a process of its own; `fds` are inherited under their own numbers.

    It runs where the supervisor does, so that relative paths mean the same, but finds our packages only in ROOT: -P
    keeps the current folder out of the search.
    """
    search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    plan_fd = store_plan(plan)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ops", "role", role, "--plan-fd", str(plan_fd)],
            pass_fds=(plan_fd, *fds),
            env={**os.environ, "PYTHONPATH": search_path},
            stdin=subprocess.DEVNULL,
            process_group=0,  # a signal to the whole group is the supervisor's to pass on, in its own order
        )
    finally:
        os.close(plan_fd)


def start_engine(plan: EnginePlan) -> "subprocess.Popen[bytes]":
    return start("engine", plan, fds_of(plan.handles))


def start_broker(plan: BrokerPlan) -> "subprocess.Popen[bytes]":
    return start("broker", plan, fds_of(plan.handles))


def start_zygote(plan: ZygotePlan) -> "subprocess.Popen[bytes]":
    return start("zygote", plan, (plan.command_fd, *plan.worker_fds))


def run(role: str, plan_fd: int) -> int:
    """What `python -m ops role ROLE --plan-fd N` does; returns the exit code."""
    return _ROLES[role](plan_fd)


def _run_engine(plan_fd: int) -> int:
    plan = take_plan(plan_fd, EnginePlan)

    def serve() -> None:
        from engine_core import process  # numpy, and torch behind it: only here

        process.run(plan.settings, plan.model, plan.handles)

    return _run_role(f"engine {plan.handles.index}", plan, serve)


def _run_broker(plan_fd: int) -> int:
    plan = take_plan(plan_fd, BrokerPlan)

    def serve() -> None:
        from ipc import broker  # the other roles need no ZMQ

        broker.run(plan.handles)

    return _run_role("broker", plan, serve)


def _run_zygote(plan_fd: int) -> int:
    plan = take_plan(plan_fd, ZygotePlan)

    def serve() -> None:
        from ops import zygote  # the whole API server: only here

        zygote.run(plan)

    return _run_role("zygote", plan, serve)


def _run_prepare(plan_fd: int) -> int:
    plan = take_plan(plan_fd, PreparePlan)

    def serve() -> None:
        from ops import prepare  # numpy, gguf and rich: only here

        prepare.run(plan)

    return _run_role("prepare", plan, serve, death_signal=signal.SIGTERM)  # it removes its half-made folder


_ROLES: dict[str, Callable[[int], int]] = {
    "engine": _run_engine,
    "broker": _run_broker,
    "zygote": _run_zygote,
    "prepare": _run_prepare,
}
ROLES = tuple(_ROLES)


def _run_role(title: str, plan: Plan, serve: Callable[[], None], death_signal: int = signal.SIGKILL) -> int:
    """The broad catch of a role's entry: a crash is one log line with a traceback and a code the supervisor reads."""
    logs.configure(title, level=plan.settings.ops.log_level, log_format=plan.settings.ops.log_format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all: the supervisor decides
    try:
        begin_role(title, plan.supervisor_pid, death_signal)
        serve()
    except Orphaned:
        return exit_codes.FAILED
    except Exception:
        logger.exception("role crashed")
        return exit_codes.FAILED
    return exit_codes.OK
