"""One scrape of /metrics: what rendering the pages of a whole fleet costs in CPU.

    python -m loadtests.micro.scrape [--workers 16] [--engines 1] [--scrapes 200]

The pages are those of the real roles, with every series of the API's routes in use; values change between two scrapes.
"""

import argparse
import time

from apiserver.metrics import WorkerMetrics
from engine_core.metrics import EngineMetrics
from ipc.broker_metrics import BrokerMetrics
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage
from ipc.metrics_page import create_metrics_segment
from ipc.ring import format_ring, ring_segment_bytes
from loadtests.report import machine, spread, table
from ops.fleet_metrics import FleetMetrics

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize", "other")
ROUNDS = 5
RING_BYTES = 4096


class Pages:
    """The metrics of a fleet that has seen every kind of request."""

    def __init__(
        self, num_workers: int, num_engines: int, max_model_len: int = 131_072, num_draft_places: int = 0
    ) -> None:
        names = ["supervisor", "broker", *(f"engine-{n}" for n in range(num_engines))]
        names += [f"worker-{n}" for n in range(num_workers)]
        self.segments = [create_metrics_segment(name) for name in names]
        views = [segment.view for segment in self.segments]
        page = FleetPage(FleetPage.create_segment(num_workers, num_engines).view)
        rings = [[_ring() for _ in range(num_workers)] for _ in range(num_engines)]
        self.fleet = FleetMetrics(
            views[0], page, rings, num_workers=num_workers, heartbeat_timeout_s=10.0, drain_limit_s=lambda: 120.0
        )
        self.broker = BrokerMetrics(views[1], "bench")
        self.engines = [
            EngineMetrics(
                view,
                model_name="bench",
                engine=n,
                block_size=16,
                num_blocks=4096,
                num_draft_places=num_draft_places,
            )
            for n, view in enumerate(views[2 : 2 + num_engines])
        ]
        self.workers = [
            WorkerMetrics(view, "bench", max_model_len, worker=n) for n, view in enumerate(views[2 + num_engines :])
        ]
        for worker in self.workers:
            for route in ROUTES:
                for status in (200, 400, 503):
                    worker.on_http("POST", route, status, 0.1, 1000, 2000)

    def count(self) -> None:
        """What a few milliseconds of work add."""
        self.fleet.publish()
        for worker in self.workers:
            worker.on_http("POST", ROUTES[0], 200, 0.123, 1000, 2000)
            worker.ttft.observe(0.0123)
            worker.on_drained(17)
        for engine in self.engines:
            engine.on_step(64, 0.0123)


def _ring() -> memoryview:
    view = memoryview(bytearray(ring_segment_bytes(RING_BYTES)))
    format_ring(view, RING_BYTES)
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--scrapes", type=int, default=200)
    arguments = parser.parse_args()
    pages = Pages(arguments.workers, arguments.engines)
    exposition = Exposition([segment.view for segment in pages.segments])
    text = exposition.render()
    rounds_ms = [_round_ms(pages, exposition, arguments.scrapes) for _ in range(ROUNDS)]
    print(machine())
    row = [str(arguments.workers), str(text.count(b"\n")), str(len(text)), spread(rounds_ms, 2)]
    print(table(["workers", "lines", "bytes", "CPU ms per scrape"], [row]))


def _round_ms(pages: Pages, exposition: Exposition, num_scrapes: int) -> float:
    spent_s = 0.0
    for _ in range(num_scrapes):
        pages.count()
        started_s = time.process_time()
        exposition.render()
        spent_s += time.process_time() - started_s
    return spent_s / num_scrapes * 1e3


if __name__ == "__main__":
    main()
