"""torch's profiler around the steps of one engine: a Chrome trace per profile, in the folder the operator named.

Its traces open in Perfetto (https://ui.perfetto.dev) and chrome://tracing. Profiled steps are slower, and every one of them
costs memory until the trace is written; writing it stops the engine for as long as it takes.
"""

import logging
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from engine_core.control import ProfilerFault
from ipc.messages import ProfileOptions

logger = logging.getLogger(__name__)


class TorchProfiler:
    """Started by the operator's word, or `delay_iterations` steps behind it; stopped by another, or after
    `max_iterations` steps."""

    def __init__(self, folder: Path, engine: int) -> None:
        self._folder, self._engine = folder, engine
        self._options: ProfileOptions | None = None  # None: nobody asked for a profile
        self._profile: profile | None = None  # while it records
        self._num_steps = 0

    @property
    def is_armed(self) -> bool:
        """Whether `on_step` wants to hear of steps."""
        return self._options is not None

    def start(self, options: ProfileOptions) -> None:
        """Raises ProfilerFault while a profile is being taken."""
        if self._options is not None:
            raise ProfilerFault("a profile is being taken already: stop it first")
        self._options, self._num_steps = options, 0
        if options.delay_iterations == 0:
            self._begin()

    def on_step(self) -> None:
        """Behind every step while it is armed. Nobody waits for an answer: what goes wrong here ends the profile alone."""
        try:
            self._count_step()
        except Exception:
            logger.exception("profile given up", extra={"folder": str(self._folder)})
            self._profile = self._options = None

    def _count_step(self) -> None:
        options = self._options
        assert options is not None
        self._num_steps += 1
        if self._profile is None:
            if self._num_steps >= options.delay_iterations:
                self._begin()
        elif options.max_iterations and self._num_steps >= options.delay_iterations + options.max_iterations:
            self.stop()

    def stop(self) -> None:
        """Writes what was recorded. One that has ended by itself, or never begun, is no fault."""
        recorded, options = self._profile, self._options
        self._profile = self._options = None
        if recorded is None or options is None:
            return
        recorded.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{options.prefix}engine_{self._engine}.{time.time_ns()}.pt.trace.json.gz"
        recorded.export_chrome_trace(str(path))
        logger.info("profile written", extra={"path": str(path), "num_steps": self._num_steps})

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()
