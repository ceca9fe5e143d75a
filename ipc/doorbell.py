"""An eventfd that wakes a worker's event loop: every engine rings it, one worker listens.

No wake-up is lost. The engine publishes, then rings; the worker clears, then polls every ring until it is empty. A
record published before the clear is found by the poll behind it; one published after the clear rings again. Both
operations are system calls, so they also order the memory around them on every architecture.
`tests/doorbell/doorbell.pml` is the same argument for SPIN.
"""

import os


class Doorbell:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> "Doorbell":
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def ring(self) -> None:
        """Wake the listener, now or the next time it waits. One system call; never blocks."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:  # 2**64 - 2 unheard rings: the bell is ringing all the same
            pass

    def clear(self) -> None:
        """Stop ringing. Call before polling the rings, never after."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
