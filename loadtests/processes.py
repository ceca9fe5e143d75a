"""CPU time and memory of a server and all its descendants, read from /proc.

CPU time from /proc is steadier than wall time on a shared machine; it counts every process of the server, reaped
children included in their parents.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTime:
    """Seconds since the processes started."""

    user_s: float
    system_s: float

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __sub__(self, earlier: "CpuTime") -> "CpuTime":
        return CpuTime(self.user_s - earlier.user_s, self.system_s - earlier.system_s)


@dataclass(frozen=True)
class Memory:
    """Summed over the processes. PSS divides shared pages by their users: the honest figure for a fleet of forks."""

    rss_mb: float
    pss_mb: float


def descendants(root_pid: int) -> list[int]:
    """The process and everything below it, living now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat_fields(int(entry.name))[1])
            except OSError:
                continue  # gone meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root_pid]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue.extend(children.get(pid, ()))
    return found


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def cpu_time(pids: list[int]) -> CpuTime:
    """Of these processes and their reaped children."""
    user = system = 0
    for pid in pids:
        try:
            fields = _stat_fields(pid)
        except OSError:
            continue
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
    return CpuTime(user / _TICKS_PER_S, system / _TICKS_PER_S)


def pin(pids: list[int], cores: list[int]) -> None:
    """Every thread of these processes."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # gone meanwhile
                os.sched_setaffinity(int(task.name), cores)


def memory(pids: list[int]) -> Memory:
    rss = pss = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        rss += sizes["Rss"]
        pss += sizes["Pss"]
    return Memory(rss / 1024, pss / 1024)


def num_open_files(pids: list[int]) -> int:
    """Open descriptors of these processes, one that several share counted in each."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # gone meanwhile
            count += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return count


def peer_ports(pid: int, local_port: int) -> set[int]:
    """The clients' ports of the TCP connections to `local_port` that this process holds."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(entry.readlink().name)
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if f"socket:[{inode}]" in sockets and int(local.partition(":")[2], 16) == local_port:
            found.add(int(remote.partition(":")[2], 16))
    return found - {0}  # a socket that listens has no client


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, and really: it is in no system call any more."""
    return _stat_fields(pid)[0] == "T"


def tcp_memory_mb() -> float:
    """What the kernel holds for all TCP sockets of this host: no process's PSS has it."""
    fields = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
    ).split()
    return int(fields[fields.index("mem") + 1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on: [0] state, [1] ppid, [11] utime, [12] stime, [13] cutime, [14] cstime."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
