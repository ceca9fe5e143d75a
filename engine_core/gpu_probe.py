"""Which GPU is here, asked of the driver in a process of its own: a process that has asked cannot fork one that uses it."""

import ctypes
import subprocess
import sys
from pathlib import Path

DRIVER = Path("/dev/nvidiactl")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, CUDA driver API


def compute_capability() -> tuple[int, int] | None:
    """Of the first CUDA device, (9, 0) for an H100; None without one."""
    if not DRIVER.exists():
        return None
    asked = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode:
        return None
    major, minor = asked.stdout.split()
    return int(major), int(minor)


def main() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 1
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return 1
    for attribute in (MAJOR, MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return 1
        print(value.value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
