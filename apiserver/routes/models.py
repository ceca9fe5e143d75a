"""GET /v1/models and /v1/models/{name} (https://platform.openai.com/docs/api-reference/models)."""

from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from apiserver.asgi import send_json
from apiserver.routes.generate import check_model
from apiserver.services import Services


class Models:
    def __init__(self, services: Services) -> None:
        self._services = services
        # Of the model's folder, not of this process: every worker, and its successor, says the same.
        self._created = int((Path(services.model.path) / "config.json").stat().st_mtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope.get("path_params", {}).get("name")
        if name is not None:
            await send_json(send, self._card(check_model(name, self._services)))
            return
        names = (*self._services.model.served_names, *self._services.lora_paths)
        cards = [self._card(name) for name in names]
        await send_json(send, {"object": "list", "data": cards})

    def _card(self, name: str) -> dict[str, Any]:
        """As in vLLM an adapter's parent is the model, whose length it has."""
        model, adapter = self._services.model, self._services.lora_paths.get(name)
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "tokenfleet",
            "root": model.name if adapter is None else adapter,
            "parent": None if adapter is None else model.name,
            "max_model_len": model.max_model_len if adapter is None else None,
        }
