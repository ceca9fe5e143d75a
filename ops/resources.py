"""Everything the processes of a fleet share, created once by the supervisor before the first child and closed by nobody.

A child inherits descriptors under their own numbers and gets them again in its next generation. Memory is anonymous:
when the last process is gone, so is all of it.
"""

import os
import resource
import socket
from pathlib import Path

from msgspec import structs

from config.load import Configuration
from config.settings import Settings
from config.shown import secret_digests, shown_settings
from ipc.doorbell import Doorbell
from ipc.fleet_page import FleetPage
from ipc.handles import BrokerHandles, EngineHandles, WorkerHandles
from ipc.key_page import create_key_segment
from ipc.metrics_page import create_metrics_segment
from ipc.ring import format_ring, ring_segment_bytes
from ipc.segment import Segment
from ipc.shelf import format_shelf, shelf_segment_bytes
from ops.listeners import ops_socket, serving_sockets
from ops.run_folder import Manifest, RingEntry, RunFolder


class Resources:
    def __init__(self, settings: Settings, num_workers: int) -> None:
        """Raises CannotListen, CannotUseFolder."""
        raise_open_files_limit()
        self._settings = settings
        self.num_workers = num_workers
        self.num_slots = num_workers + 1  # one is free for the successor of a worker that is being replaced
        self.num_engines = settings.engine.engines
        self.ops_listener = ops_socket(settings.ops.ops_host, settings.ops.ops_port)
        self.listeners = serving_sockets(settings.server)
        self._fleet = FleetPage.create_segment(self.num_slots, self.num_engines)
        self.page = FleetPage(self._fleet.view)
        self._rings = [[self._make_ring(e, s) for s in range(self.num_slots)] for e in range(self.num_engines)]
        self._doorbells = [Doorbell.create() for _ in range(self.num_slots)]
        self.broker_bell = Doorbell.create()
        names = [
            "broker",
            *(f"engine-{n}" for n in range(self.num_engines)),
            *(f"worker-{n}" for n in range(self.num_slots)),
        ]
        self._metrics = [create_metrics_segment(name) for name in ("supervisor", *names)]
        self._shelves = self._make_shelves()
        self._key_pages = [create_key_segment(slot) for slot in range(self.num_slots)]
        self._folder = RunFolder()
        self._folder.store(self._manifest())

    @property
    def supervisor_metrics(self) -> memoryview:
        return self._metrics[0].view

    @property
    def metrics_views(self) -> list[memoryview]:
        return [segment.view for segment in self._metrics]

    @property
    def ring_views(self) -> list[list[memoryview]]:
        """By engine, then by worker."""
        return [[ring.view for ring in rings] for rings in self._rings]

    @property
    def url(self) -> str:
        """Where clients reach the fleet; of a Unix socket, the host is whatever they like."""
        server = self._settings.server
        url = "http://localhost" if server.uds else _url(self.listeners[0])
        return url if server.ssl_certfile is None else url.replace("http", "https", 1)

    @property
    def ops_url(self) -> str:
        return _url(self.ops_listener)

    def broker_handles(self, generation: int, model_name: str) -> BrokerHandles:
        engine, broker = self._settings.engine, self._settings.broker
        return BrokerHandles(
            generation=generation,
            model_name=model_name,
            fleet_fd=self._fleet.fd,
            metrics_fd=self._metrics[1].fd,
            bell_fd=self.broker_bell.fd,
            beat_s=self._settings.ops.beat_s,
            worker_endpoint=self._folder.endpoint("workers"),
            engine_endpoint=self._folder.endpoint("engines"),
            tap_endpoint=self._folder.endpoint("tap"),
            num_engines=self.num_engines,
            max_num_seqs=engine.max_num_seqs,
            max_num_queued_reqs=broker.max_num_queued_reqs,
            max_num_queued_tokens=broker.max_num_queued_tokens,
        )

    def engine_handles(self, index: int, generation: int) -> EngineHandles:
        return EngineHandles(
            index=index,
            generation=generation,
            ring_fds=tuple(ring.fd for ring in self._rings[index]),
            doorbell_fds=tuple(doorbell.fd for doorbell in self._doorbells),
            fleet_fd=self._fleet.fd,
            metrics_fd=self._metrics[2 + index].fd,
            broker_endpoint=self._folder.endpoint("engines"),
        )

    def worker_handles(self, slot: int, generation: int) -> WorkerHandles:
        return WorkerHandles(
            slot=slot,
            generation=generation,
            listen_fds=tuple(listener.fileno() for listener in self.listeners),
            doorbell_fd=self._doorbells[slot].fd,
            ring_fds=tuple(rings[slot].fd for rings in self._rings),
            fleet_fd=self._fleet.fd,
            metrics_fds=tuple(segment.fd for segment in self._metrics),
            metrics_index=2 + self.num_engines + slot,
            broker_endpoint=self._folder.endpoint("workers"),
            key_page_fds=tuple(page.fd for page in self._key_pages),
            shelf_fds=tuple(shelf.fd for shelf in self._shelves),
        )

    def stop_listening(self) -> None:
        """Close the serving sockets here. Once workers and zygote have closed theirs too, new clients are refused."""
        for listener in self.listeners:
            listener.close()

    def record(self, configuration: Configuration) -> None:
        """For observers: the settings that the fleet runs with from now on, without secrets. Raises CannotUseFolder."""
        manifest = structs.replace(
            self._manifest(),
            settings=tuple(shown_settings(configuration)),
            secret_digests=tuple(secret_digests(configuration)),
        )
        self._folder.store(manifest)

    def remove(self) -> None:
        """What has a name in the file system. The rest ends with the process."""
        self._folder.remove()
        if self._settings.server.uds is not None:
            Path(self._settings.server.uds).unlink(missing_ok=True)

    def _make_ring(self, engine: int, slot: int) -> Segment:
        capacity = self._settings.ops.ring_bytes
        ring = Segment.create(f"tokenfleet-ring-{engine}-{slot}", ring_segment_bytes(capacity))
        format_ring(ring.view, capacity)
        return ring

    def _make_shelves(self) -> list[Segment]:
        """One per slot: its part of what the whole fleet may store."""
        server = self._settings.server
        data_bytes = server.response_store_bytes // self.num_slots
        if not data_bytes:
            return []
        num_entries = max(1, server.response_store_entries // self.num_slots)
        shelves = []
        for slot in range(self.num_slots):
            shelf = Segment.create(f"tokenfleet-shelf-{slot}", shelf_segment_bytes(num_entries, data_bytes))
            format_shelf(shelf.view, num_entries, data_bytes)
            shelves.append(shelf)
        return shelves

    def _manifest(self) -> Manifest:
        rings = ((e, s, ring.fd) for e, rings in enumerate(self._rings) for s, ring in enumerate(rings))
        return Manifest(
            os.getpid(), self._folder.endpoint("tap"), tuple(RingEntry(*entry) for entry in rings), self.ops_url
        )


def raise_open_files_limit() -> None:
    """One descriptor per client connection: take all that the hard limit allows, children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fds_of(handles: BrokerHandles | EngineHandles | WorkerHandles) -> set[int]:
    """Every descriptor that a process with these handles needs."""
    fields = ((name, getattr(handles, name)) for name in handles.__struct_fields__)
    fds: set[int] = set()
    for name, value in fields:
        if name.endswith("_fd"):
            fds.add(value)
        elif name.endswith("_fds"):
            fds.update(value)
    return fds


def _url(listener: socket.socket) -> str:
    """A client cannot connect to "all addresses": it is shown the loopback one."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
