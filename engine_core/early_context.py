"""The driver's share of a GPU engine's start, done while Python imports torch: half a second in C, beside the interpreter.

The context is the one that torch then finds there: the driver has one primary context per device and process.
"""

import ctypes
import threading

from engine_core.gpu_probe import DRIVER


def open_beside() -> threading.Thread | None:
    """Returns at once, with the thread that does it; None without a driver. What goes wrong, torch will say again."""
    if not DRIVER.exists():
        return None
    thread = threading.Thread(target=_open, name="cuda context", daemon=True)
    thread.start()
    return thread


def _open() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)  # until the process ends
