"""Memory that a process needed to start and does not need to run goes back to the system.

Start-up parses vocabularies, converts weights and loads compilers: without this every process carries the leavings for
life, and a forked one copies them.
"""

import ctypes
import mmap
from pathlib import Path

MAPS = Path("/proc/self/maps")


def give_back_free_memory() -> None:
    """What was freed but is kept by the allocator. A third of the heap behind a vocabulary (32 of 107 MB for 49k tokens)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


def give_back_code(library: str) -> None:
    """Unmaps the pages of a shared library's code, which come back from its file when they are called again.

    `library` is the start of the file's name. Only what cannot have been written to is touched: executable pages.
    """
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in MAPS.read_text().splitlines():
        span, permissions, _offset, _device, _inode, *path = line.split(maxsplit=5)
        if permissions == "r-xp" and path and Path(path[0]).name.startswith(library):
            start, end = (int(address, 16) for address in span.split("-"))
            madvise(start, end - start, mmap.MADV_DONTNEED)  # an error leaves the pages where they are
