"""What a trace of torch's profiler says: how busy the device was and with what, and what the host did meanwhile.

    python -m loadtests.gpu.trace TRACE.json[.gz] [--rows 20]

Traces come from `steps --trace`, `server --profile` and a server's /start_profile. Profiled launches take longer than others:
where a device idles in a trace, it need not without the profiler.
"""

import argparse
import gzip
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaEventSynchronize", "cudaStreamSynchronize", "cudaDeviceSynchronize")
MAX_NAME = 90


@dataclass
class Sums:
    """Of events by name, in microseconds."""

    times: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, duration_us: float) -> None:
        self.times[name] += duration_us
        self.counts[name] += 1


@dataclass
class Trace:
    span_us: float  # from the first to the last work of the device
    busy_us: float  # of it, with at least one kernel or copy running
    device: Sums
    host: Sums  # calls of the CUDA runtime, all threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rows", type=int, default=20)
    arguments = parser.parse_args()
    print(described(read(arguments.trace), arguments.rows))


def read(path: Path) -> Trace:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return trace_of(json.load(file)["traceEvents"])


def trace_of(events: list[dict[str, Any]]) -> Trace:  # Any: JSON
    device, host = Sums(), Sums()
    intervals: list[tuple[float, float]] = []
    for event in events:
        kind, duration_us = event.get("cat"), float(event.get("dur", 0))
        if kind in ON_DEVICE:
            device.add(event["name"], duration_us)
            intervals.append((float(event["ts"]), float(event["ts"]) + duration_us))
        elif kind in ("cuda_runtime", "cuda_driver"):
            host.add(event["name"], duration_us)
    if not intervals:
        raise SystemExit("nothing ran on a device in this trace")
    return Trace(max(end for _, end in intervals) - min(intervals)[0], covered(intervals), device, host)


def covered(intervals: list[tuple[float, float]]) -> float:
    """How much of the line they cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def described(trace: Trace, num_rows: int) -> str:
    waited_us = sum(trace.host.times.get(name, 0.0) for name in WAITS)
    lines = [
        f"{trace.span_us / 1e3:.1f} ms; the device works for {trace.busy_us / trace.span_us:.1%} of them, "
        f"the host waits for it for {waited_us / trace.span_us:.1%}"
    ]
    for title, sums in (("on the device", trace.device), ("calls of the host", trace.host)):
        lines.append(f"{title}:")
        for name in sorted(sums.times, key=lambda name: -sums.times[name])[:num_rows]:
            time_us, count = sums.times[name], sums.counts[name]
            share = f"{time_us / trace.span_us:6.1%} {time_us / 1e3:9.2f} ms"
            lines.append(f"  {share} {count:6} x {time_us / count:8.1f} us  {name[:MAX_NAME]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
