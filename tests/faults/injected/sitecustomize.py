"""Faults inside a process, which nothing outside it can cause. Python loads this before anything else where PYTHONPATH has the
folder; a request asks for a fault by its seed, or a test by a file in $INJECTED_FAULTS.

    seed 6601, presence_penalty   the engine's sampler raises for this row
    seed 6602                     the worker that takes it never returns to its loop
    seed 6603                     the worker that takes it raises
    file lost_device              the engine's next pass raises what torch raises when CUDA is lost; the file is gone then
    file hung_step                the sim engine's next pass never ends; the file is gone then
    file killed_between           the process that forks the next worker dies before it can tell; the file is gone then
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

RAISES_SEED, SPINS_SEED, STORM_SEED = 6601, 6602, 6603


def spoil_engine(folder: Path) -> None:
    from engine_core.model_runner import ModelRunner
    from engine_core.sampler import Sampler
    from engine_core.sim import SimRunner

    launch, penalize, sim_launch = ModelRunner.launch, Sampler._penalize, SimRunner.launch

    def launch_or_lose(runner: ModelRunner, plan: Any) -> Any:  # Any: only passed on
        lost = folder / "lost_device"
        if lost.exists():
            lost.unlink()
            raise RuntimeError("CUDA error: device-side assert triggered")
        return launch(runner, plan)

    def launch_or_hang(runner: SimRunner, plan: Any) -> Any:
        hung = folder / "hung_step"
        if hung.exists():
            hung.unlink()
            while True:
                time.sleep(1)
        return sim_launch(runner, plan)

    def penalize_or_raise(sampler: Sampler, logits: Any, row: int) -> None:
        if sampler._state.seed[row] == RAISES_SEED:
            raise RuntimeError("injected")
        penalize(sampler, logits, row)

    ModelRunner.launch = launch_or_lose  # type: ignore[assignment, method-assign]
    SimRunner.launch = launch_or_hang  # type: ignore[assignment, method-assign]
    Sampler._penalize = penalize_or_raise  # type: ignore[assignment, method-assign]


def spoil_worker(folder: Path) -> None:
    from apiserver import generation
    from ops import zygote

    submit, answer = generation.submit, zygote._answer

    def answer_or_die(command: Any, handles: Any, pid: int) -> None:
        killed = folder / "killed_between"
        if pid > 0 and killed.exists():
            killed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        answer(command, handles, pid)

    def submit_or_spin(request: Any, *arguments: Any) -> None:
        while request.sampling.seed == SPINS_SEED:
            pass
        if request.sampling.seed == STORM_SEED:
            raise RuntimeError("injected")
        submit(request, *arguments)

    generation.submit = submit_or_spin  # type: ignore[assignment]
    zygote._answer = answer_or_die


if "INJECTED_FAULTS" in os.environ:
    if "engine" in sys.orig_argv:
        spoil_engine(Path(os.environ["INJECTED_FAULTS"]))
    elif "zygote" in sys.orig_argv:
        spoil_worker(Path(os.environ["INJECTED_FAULTS"]))
