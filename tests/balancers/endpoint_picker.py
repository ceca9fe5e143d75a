"""A picker of endpoints as the Gateway API Inference Extension has them, before fleets instead of pods.

It stands in for llm-d's picker, which is written in Go, and keeps to the same contract: it reads vLLM's gauges off each
endpoint's serving port every 50 ms and believes them for 2 s, takes the first series of a gauge, offers only endpoints that
are ready, and answers Envoy's external processing with the header `x-gateway-destination-endpoint`; 503 without any.
"""

import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import grpc

from tests.integration.fleet import Fleet

SCRAPE_EVERY_S = 0.05
STALE_S = 2.0
UNREADY_AFTER = 2  # failures, as the chart's readiness probe
DESTINATION_HEADER = "x-gateway-destination-endpoint"
OVERWRITE_IF_EXISTS_OR_ADD = 2
_GAUGE = re.compile(r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}]*\})? (\S+)$", re.M)

messages: Any  # Any: made at run time from the proto file, as is the service
services: Any
messages, services = grpc.protos_and_services("tests/balancers/ext_proc.proto")


class Endpoint:
    """One fleet, watched by a thread of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.address = f"127.0.0.1:{fleet.port}"
        self._metrics_url, self._ready_url = f"{fleet.base_url}/metrics", f"{fleet.ops_url}/readyz"
        self._gauges: dict[str, float] = {}
        self._read_at_s = 0.0
        self._num_failures = UNREADY_AFTER
        self.num_scrapes = 0
        self.num_picked = 0  # since the gauges were read

    @property
    def is_eligible(self) -> bool:
        return self._num_failures < UNREADY_AFTER and monotonic() - self._read_at_s < STALE_S

    @property
    def load(self) -> tuple[float, float]:
        """Requests running, waiting, and on their way; then the share of KV blocks in use."""
        requests = self._gauges["num_requests_running"] + self._gauges["num_requests_waiting"]
        return requests + self.num_picked, self._gauges["kv_cache_usage_perc"]

    def watch(self, should_end: threading.Event) -> None:
        while not should_end.wait(SCRAPE_EVERY_S):
            self._num_failures = 0 if _body_or_none(self._ready_url) is not None else self._num_failures + 1
            text = _body_or_none(self._metrics_url)
            if text is not None:
                # The first series of each name wins, as with the real picker: later ones are not even looked at.
                self._gauges = dict(reversed([(name, float(value)) for name, value in _GAUGE.findall(text)]))
                self._read_at_s, self.num_picked = monotonic(), 0
                self.num_scrapes += 1


class EndpointPicker(services.ExternalProcessorServicer):  # type: ignore[misc]  # made at run time
    """Serves on entering, with a first look at every endpoint taken; ended on leaving."""

    def __init__(self, fleets: tuple[Fleet, ...], port: int) -> None:
        self.endpoints = [Endpoint(fleet) for fleet in fleets]
        self.num_refused = 0
        self._port = port
        self._should_end = threading.Event()
        self._lock = threading.Lock()
        self._watchers = [threading.Thread(target=e.watch, args=(self._should_end,)) for e in self.endpoints]

    def __enter__(self) -> "EndpointPicker":
        self._pool = ThreadPoolExecutor(256)  # a call holds one until Envoy ends it
        self._server = grpc.server(self._pool)
        services.add_ExternalProcessorServicer_to_server(self, self._server)
        assert self._server.add_insecure_port(f"127.0.0.1:{self._port}") == self._port
        self._server.start()
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._should_end.set()
        for watcher in self._watchers:
            watcher.join()
        self._server.stop(grace=None).wait(10)
        self._pool.shutdown()

    def Process(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """One call per request of a client: its head, and where it shall go."""
        for request in requests:
            if request.HasField("request_headers"):
                yield self._answer()

    def _answer(self) -> Any:
        endpoint = self._picked_or_none()
        if endpoint is None:
            refusal = messages.ImmediateResponse(status=messages.HttpStatus(code=503), body=b"no ready endpoint")
            return messages.ProcessingResponse(immediate_response=refusal)
        header = messages.HeaderValue(key=DESTINATION_HEADER, raw_value=endpoint.address.encode())
        option = messages.HeaderValueOption(header=header, append_action=OVERWRITE_IF_EXISTS_OR_ADD)
        mutation = messages.HeaderMutation(set_headers=[option])
        common = messages.CommonResponse(header_mutation=mutation, clear_route_cache=True)
        return messages.ProcessingResponse(request_headers=messages.HeadersResponse(response=common))

    def _picked_or_none(self) -> Endpoint | None:
        with self._lock:
            eligible = [endpoint for endpoint in self.endpoints if endpoint.is_eligible]
            if not eligible:
                self.num_refused += 1
                return None
            picked = min(eligible, key=lambda endpoint: (endpoint.load, random.random()))  # equals take turns
            picked.num_picked += 1
            return picked


def _body_or_none(url: str) -> str | None:
    """Of an answer with 200."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError):
        return None
