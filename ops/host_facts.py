"""What runs here and on what: versions of tokenfleet, Python and every installed package; cores, memory, open files."""

import os
import platform
import resource
import sys
from importlib.metadata import distributions
from pathlib import Path

from msgspec import Struct

from ops.cores import usable_cores

_DRIVER = Path("/proc/driver/nvidia/version")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2; "max" is none


class HostFacts(Struct, frozen=True):
    python: str
    platform: str
    gpu_driver: str | None  # None: no NVIDIA driver
    cores: int
    usable_cores: int
    memory_bytes: int
    memory_limit: str | None  # the container's, bytes or "max"; None: not told by cgroup v2
    open_files_soft: int
    open_files_hard: int
    packages: dict[str, str]


def host_facts() -> HostFacts:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HostFacts(
        python=sys.version,
        platform=platform.platform(),
        gpu_driver=_text_or_none(_DRIVER),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_limit=_text_or_none(_MEMORY_LIMIT),
        open_files_soft=soft,
        open_files_hard=hard,
        packages=dict(sorted((found.name, found.version) for found in distributions())),
    )


def _text_or_none(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
