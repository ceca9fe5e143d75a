"""What the start of a process takes, stage by stage, in one log line. No torch."""

import logging
import os
import time
from pathlib import Path

logger = logging.getLogger(__name__)

START_TIME = 22  # field of /proc/PID/stat, proc(5): ticks since the machine's boot


class StartStages:
    """Its clock began with the process, before the first line of Python."""

    def __init__(self) -> None:
        self._began_s = self._last_s = _process_began_s()
        self._seconds: dict[str, float] = {}

    def done(self, stage: str) -> None:
        """One more, named as a field; whatever happened since the last one was it."""
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._seconds[f"{stage}_s"] = round(now_s - self._last_s, 2)
        self._last_s = now_s

    def log(self) -> None:
        """All of them, and their sum."""
        whole = {"process_s": round(self._last_s - self._began_s, 2)}
        logger.info("start stages", extra=self._seconds | whole)


def _process_began_s() -> float:
    """By the clock of boot, to a hundredth."""
    behind_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # from field 3 on
    return int(behind_name[START_TIME - 3]) / os.sysconf("SC_CLK_TCK")
