"""A KV connector for the real vLLM that moves nothing: it gives back what it was told of a request, and how many blocks it has.

Imported by vLLM's own processes, by name (`kv_connector_module_path`).
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # type: ignore[import-not-found]
    KVConnectorBase_V1,
    KVConnectorMetadata,
)


class Nothing(KVConnectorMetadata):  # type: ignore[misc]  # vLLM is not installed beside mypy
    pass


class EchoConnector(KVConnectorBase_V1):  # type: ignore[misc]
    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> Nothing:
        return Nothing()

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        told = request.kv_transfer_params
        return False, None if told is None else {"told": told, "num_blocks": len(block_ids)}
