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
    """https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), .../cgroup-v1/cpu (cpu.cfs_quota_us)."""
    quota, period = _read(root / "cpu.max").split() or ("max", "0") if _read(root / "cpu.max") else ("max", "0")
    if quota == "max":
        quota, period = _read(root / "cpu/cpu.cfs_quota_us") or "-1", _read(root / "cpu/cpu.cfs_period_us") or "0"
    return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
