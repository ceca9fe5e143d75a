"""The processes of a fleet that are exec'ed: how each is started. What the started one runs: ops.role_entry."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ops.plan import BrokerPlan, EnginePlan, Plan, ZygotePlan, store_plan
from ops.resources import fds_of

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
            [sys.executable, "-P", "-m", "ops.role_entry", role, str(plan_fd)],
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
