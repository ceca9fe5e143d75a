"""The CUDA context that is opened beside the imports. Whether torch takes it up: tests/gpu/test_start.py."""

import ctypes
from pathlib import Path
from typing import Any

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

    assert early_context.open_beside(0) is None


def test_a_driver_without_its_library_is_left_to_torch(driver_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = early_context.open_beside(0)

    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()


class Driver:
    """Two GPUs. Notes what it is called with; `failing` is refused."""

    def __init__(self, failing: str | None = None, num_devices: int = 2) -> None:
        self._failing, self._num_devices = failing, num_devices
        self.calls: list[str] = []
        self.opened: int | None = None

    def cuInit(self, _flags: int) -> int:
        return self._done("cuInit")

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._num_devices
        return self._done("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return self._done("cuDeviceGet")

    def cuDevicePrimaryCtxRetain(self, _context: Any, device: ctypes.c_int) -> int:
        self.opened = device.value
        return self._done("cuDevicePrimaryCtxRetain")

    def _done(self, name: str) -> int:
        self.calls.append(name)
        return int(name == self._failing)


def opened_beside(driver: Driver, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    thread = early_context.open_beside(index)
    assert thread is not None
    thread.join(10)


STEPS = ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize(
    ("failing", "called"), [(None, STEPS), *((name, STEPS[: n + 1]) for n, name in enumerate(STEPS))]
)
def test_the_context_is_retained_once_there_is_a_device(
    failing: str | None, called: list[str], driver_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(failing)

    opened_beside(driver, 0, monkeypatch)

    assert driver.calls == called


def test_a_driver_without_devices_is_left_to_torch(driver_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(num_devices=0)

    opened_beside(driver, 0, monkeypatch)

    assert driver.calls == ["cuInit", "cuDeviceGetCount"]


@pytest.mark.parametrize(("index", "device"), [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_engines_take_the_devices_in_turn(
    index: int, device: int, driver_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()

    opened_beside(driver, index, monkeypatch)

    assert driver.opened == device
