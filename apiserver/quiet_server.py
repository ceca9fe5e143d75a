"""uvicorn's server as every role of the fleet runs it: signals are the role's own, and an idle loop sleeps."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn

DATE_S = 1.0  # how old the Date header may be


class QuietServer(uvicorn.Server):
    """Ends when told to by `stop`. Built on a running loop or before it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would take them over, and raise them again when it is done."""
        yield

    def stop(self) -> None:
        """Accept nothing new, finish what runs."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """uvicorn's wakes ten times a second to see whether it should stop: 2 ms of CPU a second on a sleeping core."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), DATE_S)
