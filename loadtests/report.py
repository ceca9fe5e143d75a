"""Runs become one Markdown table: medians with their range, and the machine they were taken on."""

import math
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`median (lowest to highest)`; a single value stands alone."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def quantile_of(values: Sequence[float], quantile: float) -> float:
    """Nearest rank: a value that was seen. `quantile` from 0 to 1. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def machine() -> str:
    """One line: when, which processor, how many cores, kernel, Python."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cores = sum(1 for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor"))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, {model}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}"
