"""What the routes of one worker reach through the ASGI state: built once by apiserver.worker, never looked up globally."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from apiserver.engine_client import EngineClient
from apiserver.keyring import Keyring
from apiserver.metrics import WorkerMetrics
from apiserver.preload import Preloaded
from apiserver.responses.store import ResponseStore
from config.lora import lora_paths
from config.model_folder import ModelFolder
from config.settings import Settings
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage

if TYPE_CHECKING:  # imported only where tracing is on
    from apiserver.tracing import RequestTracer


@dataclass(frozen=True)
class Services:
    settings: Settings
    model: ModelFolder
    preloaded: Preloaded
    client: EngineClient
    metrics: WorkerMetrics
    exposition: Exposition
    fleet: FleetPage
    slot: int
    keyring: Keyring  # false: the server is open
    response_store: ResponseStore | None = None  # None: /v1/responses stores nothing
    tracer: "RequestTracer | None" = None  # None: tracing is off

    @cached_property
    def lora_paths(self) -> dict[str, str]:
        """By the names under which clients ask for them."""
        return lora_paths(self.settings.engine.lora_modules)
