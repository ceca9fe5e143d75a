"""How settings, model and descriptors reach a process that was exec'ed: MessagePack in a memfd, whose number is an argument.

Nothing of it stands in the command line or the environment, where other users of the host could read an API key.
"""

import os
from typing import TypeVar

import msgspec
from msgspec import Struct

from config.model_folder import ModelFolder
from config.settings import Settings
from ipc.handles import BrokerHandles, EngineHandles


class Plan(Struct, frozen=True, kw_only=True):
    """What every role is told."""

    supervisor_pid: int
    settings: Settings


class PreparePlan(Plan, frozen=True, kw_only=True):
    """Convert the model of `settings` into its folder."""


class EnginePlan(Plan, frozen=True, kw_only=True):
    model: ModelFolder
    handles: EngineHandles


class BrokerPlan(Plan, frozen=True, kw_only=True):
    handles: BrokerHandles


class ZygotePlan(Plan, frozen=True, kw_only=True):
    """The workers' handles come later, one message of `command_fd` per fork."""

    model: ModelFolder
    command_fd: int
    worker_fds: tuple[int, ...]  # whatever any worker needs


PlanType = TypeVar("PlanType", bound=Plan)


def store_plan(plan: Plan) -> int:
    """A new descriptor that holds `plan`; the caller closes it after the spawn."""
    fd = os.memfd_create("tokenfleet-plan")
    os.write(fd, msgspec.msgpack.encode(plan))
    return fd


def take_plan(fd: int, plan_type: type[PlanType]) -> PlanType:
    """Read and close."""
    encoded = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return msgspec.msgpack.decode(encoded, type=plan_type)
