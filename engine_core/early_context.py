"""The driver's share of a GPU engine's start, done while Python imports torch: half a second in C, beside the interpreter.

The context is the one that torch then finds there: the driver has one primary context per device and process.
"""

import ctypes
import threading

from engine_core.gpu_probe import DRIVER


def open_beside(index: int) -> threading.Thread | None:
    """Of the device that the engine of this index computes on. Returns at once, with the thread that does it; None without a
    driver. What goes wrong, torch will say again."""
    if not DRIVER.exists():
        return None
    thread = threading.Thread(target=_open, args=(index,), name="cuda context", daemon=True)
    thread.start()
    return thread


def _open(index: int) -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return
    if driver.cuDeviceGet(ctypes.byref(device), index % count.value) == 0:  # as engine_core.model_runner chooses
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)  # until the process ends
