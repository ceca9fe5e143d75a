"""The CUDA context that is opened beside the imports. Whether torch takes it up: tests/gpu/test_start.py."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine_core import early_context


@pytest.fixture
def driver_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nvidiactl"
    path.touch()
    monkeypatch.setattr(early_context, "DRIVER", path)
    return path


def test_without_a_driver_nothing_is_begun(driver_file: Path) -> None:
    driver_file.unlink()

    assert early_context.open_beside() is None


def test_a_driver_without_its_library_is_left_to_torch(driver_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = early_context.open_beside()

    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("failing", "called"),
    [
        (None, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]),
        ("cuInit", ["cuInit"]),
        ("cuDeviceGet", ["cuInit", "cuDeviceGet"]),
    ],
)
def test_the_context_is_retained_once_there_is_a_device(
    failing: str | None, called: list[str], driver_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def entry(name: str) -> Callable[..., int]:
        def noted(*_arguments: object) -> int:
            calls.append(name)
            return int(name == failing)

        return noted

    names = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**{name: entry(name) for name in names}))
    thread = early_context.open_beside()

    assert thread is not None
    thread.join(10)
    assert calls == called
