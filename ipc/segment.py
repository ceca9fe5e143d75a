"""One piece of shared memory: an anonymous memfd, mapped. Created by the supervisor, inherited by descriptor.

A memfd has no name in any file system: when the last process that holds it is gone, so is the memory. Nothing to
unlink, nothing to clean up after `kill -9`.
"""

import mmap
import os


class Segment:
    """A mapped memfd. `view` is writable, format "B", and must not be used after `close`."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, name: str, num_bytes: int) -> "Segment":
        """New zeroed memory of `num_bytes`; pages cost nothing until touched. `name` shows in /proc/PID/maps."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, num_bytes)
        return cls(fd, num_bytes)

    @classmethod
    def attach(cls, fd: int) -> "Segment":
        """Map an inherited descriptor at its full size."""
        return cls(fd, os.fstat(fd).st_size)

    def close(self) -> None:
        """Unmap and close the descriptor. Every cast of `view` must have been released before."""
        self.view.release()
        self._map.close()
        os.close(self.fd)
