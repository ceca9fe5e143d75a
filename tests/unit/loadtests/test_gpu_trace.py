"""What is read off a trace of torch's profiler."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.gpu.trace import covered, described, read

EVENTS: list[dict[str, Any]] = [
    {"cat": "kernel", "name": "product", "ts": 100, "dur": 40},
    {"cat": "kernel", "name": "product", "ts": 130, "dur": 20},
    {"cat": "gpu_memcpy", "name": "copy", "ts": 190, "dur": 10},
    {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 90, "dur": 5},
    {"cat": "cuda_runtime", "name": "cudaEventSynchronize", "ts": 120, "dur": 25},
    {"cat": "cpu_op", "name": "aten::mm", "ts": 80, "dur": 20},
    {"name": "process_name", "ph": "M"},
]


def test_overlapping_kernels_count_once() -> None:
    assert covered([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_tells_how_busy_the_device_was_and_how_long_the_host_waited(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, json.dumps({"traceEvents": EVENTS}).encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    trace = read(path)

    assert (trace.span_us, trace.busy_us) == (100, 60)
    assert (trace.device.times["product"], trace.device.counts["product"]) == (60, 2)
    text = described(trace, 10).splitlines()
    assert text[0] == "0.1 ms; the device works for 60.0% of them, the host waits for it for 25.0%"
    assert [line.split()[-1] for line in text[1:]] == [
        "device:", "product", "copy", "host:", "cudaEventSynchronize", "cudaLaunchKernel"
    ]  # fmt: skip


def test_a_trace_without_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')

    with pytest.raises(SystemExit, match="nothing ran"):
        read(tmp_path / "trace.json")
