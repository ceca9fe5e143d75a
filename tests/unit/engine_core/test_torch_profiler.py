"""torch's profiler between an operator's two words."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from engine_core.control import ProfilerFault
from engine_core.torch_profiler import TorchProfiler
from ipc.messages import ProfileOptions


def step(profiler: TorchProfiler) -> None:
    torch.ones(4) + torch.ones(4)
    if profiler.is_armed:
        profiler.on_step()


def names_in(path: Path) -> list[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event["name"] for event in events]


def test_the_steps_between_start_and_stop_are_in_the_trace(tmp_path: Path) -> None:
    profiler = TorchProfiler(tmp_path / "new", engine=3)

    profiler.start(ProfileOptions(prefix="run_"))
    step(profiler)
    with pytest.raises(ProfilerFault, match="already"):
        profiler.start(ProfileOptions())
    profiler.stop()

    [path] = (tmp_path / "new").iterdir()
    assert path.name.startswith("run_engine_3.") and path.name.endswith(".pt.trace.json.gz")
    assert "aten::add" in names_in(path)


def test_a_profile_begins_late_and_ends_by_itself_where_it_is_told_to(tmp_path: Path) -> None:
    profiler = TorchProfiler(tmp_path, engine=0)

    profiler.start(ProfileOptions(delay_iterations=2, max_iterations=3))
    for _ in range(2):
        step(profiler)
    assert list(tmp_path.iterdir()) == []
    for _ in range(5):
        step(profiler)

    [path] = tmp_path.iterdir()
    assert names_in(path).count("aten::add") == 3
    assert not profiler.is_armed
    profiler.stop()
    assert [path] == list(tmp_path.iterdir()), "there is nothing more to write"


def test_a_profile_that_ends_by_itself_and_cannot_be_written_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for an answer then, and the step behind it must come."""
    (tmp_path / "file").write_text("no folder")
    profiler = TorchProfiler(tmp_path / "file", engine=0)

    profiler.start(ProfileOptions(max_iterations=1))
    for _ in range(3):
        step(profiler)

    assert not profiler.is_armed
    assert "profile given up" in caplog.text
