"""Stacks of this very process."""

import threading
import time
from pathlib import Path

from apiserver.stack_sampler import StackSampler


def written(folder: Path) -> str:
    deadline_s = time.monotonic() + 20
    while not (found := list(folder.glob("*.collapsed"))):
        assert time.monotonic() < deadline_s, "no stacks within 20 s"
        time.sleep(0.01)
    assert len(found) == 1
    return found[0].read_text()


def wait_in_a_frame_of_its_own(released: threading.Event) -> None:
    released.wait()


def test_stacks_are_counted_by_thread_outermost_frame_first(tmp_path: Path) -> None:
    released = threading.Event()
    thread = threading.Thread(target=wait_in_a_frame_of_its_own, args=(released,), name="waiter")
    thread.start()
    sampler = StackSampler(tmp_path / "new", slot=2)

    sampler.start("run_")
    sampler.start("twice_")
    time.sleep(0.2)
    sampler.stop()
    text = written(tmp_path / "new")
    released.set()
    thread.join()

    [line] = [line for line in text.splitlines() if line.startswith("waiter;")]
    stack, _, count = line.rpartition(" ")
    frames = stack.split(";")
    assert int(count) > 1
    assert any(frame.startswith("Thread.run (") for frame in frames)
    own = next(place for place, frame in enumerate(frames) if frame.startswith("wait_in_a_frame_of_its_own "))
    assert frames[own + 1].startswith("Event.wait (threading.py:")
    assert "stack-sampler" not in text
    assert [path.name[:13] for path in (tmp_path / "new").iterdir()] == ["run_worker_2."]


def test_between_two_profiles_there_is_no_thread_and_the_second_starts_anew(tmp_path: Path) -> None:
    sampler = StackSampler(tmp_path / "one", slot=0)
    sampler.stop()

    sampler.start("")
    sampler.stop()
    written(tmp_path / "one")
    while "stack-sampler" in [thread.name for thread in threading.enumerate()]:
        time.sleep(0.01)
    sampler.start("second_")
    sampler.stop()

    deadline_s = time.monotonic() + 20
    while not list((tmp_path / "one").glob("second_*.collapsed")):
        assert time.monotonic() < deadline_s, "no second profile within 20 s"
        time.sleep(0.01)
