"""`python -m ops.role_entry ROLE PLAN_FD`: the entry of an exec'ed role. Each imports its own libraries and no other's."""
# ruff: noqa: E402  what is refused must be refused before it is imported

from ops.own_packages import refuse_shadowed_packages

refuse_shadowed_packages()

import logging
import signal
import sys
from collections.abc import Callable

from ops import exit_codes, logs
from ops.plan import BrokerPlan, EnginePlan, Plan, PreparePlan, ZygotePlan, take_plan
from ops.process_control import Orphaned, begin_role

logger = logging.getLogger(__name__)


def run(role: str, plan_fd: int) -> int:
    """Returns the exit code."""
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


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2])))
