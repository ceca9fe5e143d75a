"""How many CPU cores this process may really use: affinity and the cgroup's quota, version 2 or 1."""

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cores(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """At least 1. A quota of 1.5 cores counts as 2: the half would idle otherwise."""
    affinity = len(os.sched_getaffinity(0))
    quota = _quota_cores(cgroup_root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def default_num_workers(num_engines: int, cores: int) -> int:
    """Each engine keeps one core busy with its step loop; the rest serves."""
    return max(1, cores - num_engines)


def _quota_cores(root: Path) -> float | None:
    """https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), .../cgroup-v1/cpu.html (cpu.cfs_quota_us)."""
    words = _words(root / "cpu.max") or _words(root / "cpu/cpu.cfs_quota_us") + _words(root / "cpu/cpu.cfs_period_us")
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    quota_us, period_us = map(int, words)
    return quota_us / period_us


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
