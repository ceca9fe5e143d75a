"""A thousand clients that do not read what they asked for, beside a few that do: what they cost the fleet and the others.

    python -m loadtests.chaos.slow_readers [--readers 1000] [--others 20] [--seconds 20] [--out FILE.md]

Half of the slow ones read nothing, the others some bytes a second. Their segments are those of an Ethernet: over
loopback's own the kernel would swallow 2.6 MB of each stream, and nobody would be slow. Before anything is measured as many
ordinary requests have run at once, so what grows afterwards is what being slow costs. The others' latencies are taken
without the slow ones, from the first of them to the last one's end, and after that.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.chaos.client import Seen, complete
from loadtests.chaos.fleet import SimFleet
from loadtests.processes import memory, tcp_memory_mb
from loadtests.report import machine, quantile_of, spread, table

STEP_MS = 20
STREAM_BUFFER_BYTES = 4096
FLAGS = ("--stream-buffer-bytes", str(STREAM_BUFFER_BYTES), "--log-level", "warning")
ETHERNET_MSS = 1460
RECEIVE_BYTES = 4096
TRICKLE_BYTES, TRICKLE_S = 256, 1.0
SLOW_TOKENS = 8000  # more than sockets, transport and bound hold together
OTHERS_TOKENS = 200
CUT_TIMEOUT_S = 180.0


@dataclass
class Phase:
    """One stretch of time: what the others saw, and the most memory there was. Times are CLOCK_MONOTONIC."""

    name: str
    from_s: float = 0.0
    until_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)  # between two tokens of one stream
    pss_mb: float = 0.0  # of the whole fleet
    engine_pss_mb: float = 0.0
    kernel_mb: float = 0.0  # of all TCP sockets of this host

    def itl_ms(self, quantile: float) -> float:
        return quantile_of(self.gaps_s, quantile) * 1e3


@dataclass(frozen=True)
class Result:
    phases: tuple[Phase, Phase, Phase]  # without the slow ones, with them, after the last was cut
    num_readers: int
    num_cut: int
    seen: list[Seen]  # the others' requests

    @property
    def growth_mb(self) -> float:
        """The most the fleet had, with what it had while nobody was slow taken off."""
        return max(phase.pss_mb for phase in self.phases) - self.phases[0].pss_mb

    @property
    def itl_ratio(self) -> float:
        """The others' p99 with the slow ones over that without."""
        return self.phases[1].itl_ms(0.99) / self.phases[0].itl_ms(0.99)


class SlowReaders:
    """Plain sockets with one request each, opened on entering; `trickle` reads a little from every second one."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self.sockets: list[socket.socket] = []

    async def connect(self) -> None:
        body = {"prompt": "slowly", "max_tokens": SLOW_TOKENS, "ignore_eos": True, "stream": True}
        payload = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: fleet\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload
        for _ in range(self._count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_MSS)
            client.setblocking(False)
            self.sockets.append(client)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self._port))
            client.send(request)

    async def trickle(self) -> None:
        while True:
            for client in self.sockets[::2]:
                with contextlib.suppress(OSError):
                    client.recv(TRICKLE_BYTES)
            await asyncio.sleep(TRICKLE_S)

    def close(self) -> None:
        for client in self.sockets:
            client.close()


class Measurement:
    """One fleet with its others, from the first phase to the last."""

    def __init__(self, fleet: SimFleet, num_readers: int, num_others: int, seconds: float) -> None:
        self._fleet, self._num_readers, self._num_others, self._seconds = fleet, num_readers, num_others, seconds
        self._seen: list[Seen] = []
        self._phase = Phase("warm-up")

    async def run(self) -> Result:
        await self._warm_up()
        others = [asyncio.create_task(self._stream_on(number)) for number in range(self._num_others)]
        sampling = asyncio.create_task(self._sample())
        calm = await self._during("without them", self._wait)
        readers = SlowReaders(self._fleet.port, self._num_readers)
        trickling = asyncio.create_task(readers.trickle())
        slow = await self._during("with them", lambda: self._until_cut(readers))
        after = await self._during("after the last was cut", self._wait)
        num_cut = await asyncio.to_thread(self._num_cut)
        readers.close()
        for task in (*others, sampling, trickling):
            task.cancel()
        await asyncio.gather(*others, sampling, trickling, return_exceptions=True)
        return Result((calm, slow, after), self._num_readers, num_cut, [one for one in self._seen if one.is_done])

    async def _warm_up(self) -> None:
        body = {"prompt": "first", "max_tokens": 100, "ignore_eos": True, "stream": True}
        seen = [Seen() for _ in range(self._num_readers)]
        await asyncio.gather(*(complete(self._fleet.port, body, one) for one in seen))
        assert all(one.ending == "finished" for one in seen), "the fleet does not even serve who reads"

    async def _during(self, name: str, work: Callable[[], Awaitable[None]]) -> Phase:
        phase = self._phase = Phase(name, from_s=time.monotonic())
        await work()
        phase.until_s = time.monotonic()
        for one in self._seen:
            times_s = one.event_times_s
            phase.gaps_s += [
                later - earlier
                for earlier, later in itertools.pairwise(times_s)
                if phase.from_s <= earlier and later <= phase.until_s
            ]
        return phase

    async def _wait(self) -> None:
        await asyncio.sleep(self._seconds)

    async def _until_cut(self, readers: SlowReaders) -> None:
        await readers.connect()
        deadline_s = time.monotonic() + CUT_TIMEOUT_S
        while await asyncio.to_thread(self._num_cut) < self._num_readers and time.monotonic() < deadline_s:
            await asyncio.sleep(0.3)

    def _num_cut(self) -> int:
        return int(self._fleet.metric('tokenfleet:shed_total{reason="slow_client"'))

    async def _stream_on(self, number: int) -> None:
        """One of the others: a stream behind the other."""
        body = {"prompt": f"other {number}", "max_tokens": OTHERS_TOKENS, "ignore_eos": True, "stream": True}
        while True:
            self._seen.append(Seen())
            await complete(self._fleet.port, body, self._seen[-1])

    async def _sample(self) -> None:
        while True:
            phase = self._phase
            pids, engine = self._fleet.all_pids, self._fleet.pids("engine")
            phase.pss_mb = max(phase.pss_mb, (await asyncio.to_thread(memory, pids)).pss_mb)
            phase.engine_pss_mb = max(phase.engine_pss_mb, (await asyncio.to_thread(memory, engine)).pss_mb)
            phase.kernel_mb = max(phase.kernel_mb, tcp_memory_mb())
            await asyncio.sleep(1.0)


def measure(num_readers: int, num_others: int, seconds: float, log_path: Path, *, step_ms: float = STEP_MS) -> Result:
    """`seconds` without the slow ones, then until the last of them is cut, then `seconds` again."""
    flags = ("--sim-step-ms", str(step_ms), "--max-num-seqs", str(num_readers + num_others))
    with SimFleet(log_path, *FLAGS, *flags) as fleet:
        return asyncio.run(Measurement(fleet, num_readers, num_others, seconds).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--others", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each stretch without slow readers")
    parser.add_argument("--rounds", type=int, default=3, help="fleets, one after the other")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(arguments.readers, arguments.others, arguments.seconds, Path(folder) / f"{number}.log")
            for number in range(arguments.rounds)
        ]
    text = report(results)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    raise SystemExit(0 if all(result.num_cut == result.num_readers for result in results) else 1)


def report(results: list[Result]) -> str:
    rows = []
    for phases in zip(*(result.phases for result in results), strict=True):
        columns = [
            [phase.until_s - phase.from_s for phase in phases], [phase.itl_ms(0.5) for phase in phases],
            [phase.itl_ms(0.99) for phase in phases], [phase.pss_mb for phase in phases],
            [phase.engine_pss_mb for phase in phases], [phase.kernel_mb for phase in phases],
        ]  # fmt: skip
        rows.append([phases[0].name, *(spread(column) for column in columns)])
    head = ["", "seconds", "others' ITL p50 ms", "p99 ms", "fleet PSS MB", "of it the engine", "TCP buffers MB"]
    first = results[0]
    return "\n".join(
        [
            "# Slow readers", "",
            f"{first.num_readers} of them, {STREAM_BUFFER_BYTES} bytes kept of each; {machine()}, a step every "
            f"{STEP_MS} ms, {len(results)} rounds. Memory is the most of each stretch.", "",
            table(head, rows),
            f"{sum(result.num_cut for result in results)} of {sum(result.num_readers for result in results)} cut. The "
            f"fleet grew by {spread([result.growth_mb for result in results])} MB; the others' p99 was "
            f"{spread([result.itl_ratio for result in results], 2)} times that without the slow ones; "
            f"{sum(len(result.seen) for result in results)} of their streams finished.", "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
