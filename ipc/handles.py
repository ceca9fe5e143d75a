"""What the supervisor created and a child process inherits: file descriptors and endpoints, nothing else.

The supervisor creates every shared resource before it starts a child and keeps it open; a respawned child gets the
same descriptors with the next generation. Descriptors are inherited under their own numbers.
"""

from msgspec import Struct


class WorkerHandles(Struct, frozen=True, kw_only=True):
    slot: int
    generation: int  # 1 for the first process of this slot
    listen_fds: tuple[int, ...]
    doorbell_fd: int  # eventfd that the engines ring
    ring_fds: tuple[int, ...]  # one memfd per engine: this worker reads
    fleet_fd: int  # memfd of ipc.fleet_page
    metrics_fds: tuple[int, ...]  # one memfd per process of the fleet, own one at metrics_index
    metrics_index: int
    broker_endpoint: str
    key_page_fds: tuple[int, ...] = ()  # one memfd of ipc.key_page per slot; (): keys have no limits
    shelf_fds: tuple[int, ...] = ()  # one memfd of ipc.shelf per slot; (): nothing is stored


class EngineHandles(Struct, frozen=True, kw_only=True):
    index: int
    generation: int
    ring_fds: tuple[int, ...]  # one memfd per worker: this engine writes
    doorbell_fds: tuple[int, ...]  # one eventfd per worker
    fleet_fd: int
    metrics_fd: int
    broker_endpoint: str


class BrokerHandles(Struct, frozen=True, kw_only=True):
    generation: int
    model_name: str  # label of its metrics
    fleet_fd: int
    metrics_fd: int
    bell_fd: int  # eventfd that the supervisor rings when a worker or an engine has died
    beat_s: float  # longest silence of the loop
    worker_endpoint: str
    engine_endpoint: str
    tap_endpoint: str  # XPUB of everything routed, for `tokenfleet wiretap`
    num_engines: int
    max_num_seqs: int  # per engine
    max_num_queued_reqs: int
    max_num_queued_tokens: int
