"""Where a worker spends its time: the stacks of all its threads, looked at by a thread of their own a hundred times a second.

As py-spy does it, but from inside: nothing to install and no privilege to ask for. A stack is seen when its thread lets go of
the interpreter, so time inside a C call counts for its Python caller, and a loop that waits shows as the frame that waits.
The file has one line per stack, outermost frame first, and how often it was seen ("collapsed" stacks: what flamegraph.pl,
inferno and https://www.speedscope.app read).
"""

import logging
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

INTERVAL_S = 0.01
MAX_S = 600.0  # then it ends by itself: a profile that is forgotten costs nothing for ever
MAX_STACKS = 20_000  # different ones
MAX_FRAMES = 100  # of one stack, the innermost


class StackSampler:
    """One profile at a time; between them there is no thread."""

    def __init__(self, folder: Path, slot: int) -> None:
        self._folder, self._slot = folder, slot
        self._prefix = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, prefix: str) -> None:
        """A second one changes nothing."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._prefix = prefix
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="stack-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The thread writes what it has seen and ends; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        seen: Counter[str] = Counter()
        ends_s = time.monotonic() + MAX_S
        while not self._stop.wait(INTERVAL_S) and time.monotonic() < ends_s and len(seen) < MAX_STACKS:
            seen.update(_stacks())
        try:
            self._write(seen)
        except OSError:
            logger.exception("stacks not written", extra={"folder": str(self._folder)})

    def _write(self, seen: Counter[str]) -> None:
        """Whole or not at all: whoever sees the file may read it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._prefix}worker_{self._slot}.{time.time_ns()}.collapsed"
        part = path.with_suffix(".part")
        part.write_text("".join(f"{stack} {count}\n" for stack, count in seen.most_common()))
        part.rename(path)
        logger.info("stacks written", extra={"path": str(path), "num_samples": seen.total()})


def _stacks() -> list[str]:
    """Of all threads but this one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return [
        ";".join([names.get(ident, "thread"), *_frames(frame)])
        for ident, frame in sys._current_frames().items()
        if ident != own
    ]


def _frames(frame: FrameType | None) -> list[str]:
    frames: list[str] = []
    while frame is not None and len(frames) < MAX_FRAMES:
        code = frame.f_code
        frames.append(f"{code.co_qualname} ({Path(code.co_filename).name}:{code.co_firstlineno})")
        frame = frame.f_back
    return frames[::-1]
