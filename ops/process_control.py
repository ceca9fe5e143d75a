"""Linux process controls that the standard library lacks, and what every role does first."""

import ctypes
import faulthandler
import os
import signal

from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Orphaned(Exception):
    """The supervisor is gone already."""


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, which then reaps them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def begin_role(title: str, supervisor_pid: int, death_signal: int = signal.SIGKILL) -> None:
    """Name this process, tie its life to the supervisor's, and leave a traceback when it is aborted. Raises Orphaned.

    `death_signal` comes when the supervisor is gone. SIGKILL: without supervisor and engine no stream can be finished, a hung
    loop would not hear anything milder, and nothing of ours outlives its processes.
    """
    setproctitle(f"tokenfleet: {title}")
    faulthandler.enable(all_threads=True)  # the watchdog's SIGABRT
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != supervisor_pid:  # it died before the line above
        raise Orphaned


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
