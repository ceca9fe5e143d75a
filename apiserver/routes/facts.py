"""What this server is: /server_info with --server-dev-mode, /tokenizer_info with --enable-tokenizer-info-endpoint."""

import os
import platform
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec
from starlette.types import Receive, Scope, Send

from apiserver.asgi import send_json
from apiserver.errors import InvalidRequest
from apiserver.routes.health import installed_version
from apiserver.services import Services
from config.fields import ENV_PREFIX, FIELDS
from config.load import SECRET_FIELDS
from config.shown import shown_value

Json = dict[str, Any]  # Any: JSON, as everywhere here
_FILES = ("vocab_file", "merges_file", "tokenizer_file")  # where somebody's tokenizer once lay


class ServerInfo:
    """The configuration as an operator may see it: secrets are counted, not shown. vLLM's keys with our name in them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        config = _config(self._services)
        is_json = _config_format(scope) == "json"
        await send_json(
            send,
            {
                "tokenfleet_config": config if is_json else _as_text(config),
                "tokenfleet_env": _environment(),
                "system_env": {
                    "tokenfleet_version": installed_version(),
                    "python_version": platform.python_version(),
                    "os": platform.platform(),
                    "cpus": len(os.sched_getaffinity(0)),
                },
            },
        )


def _config_format(scope: Scope) -> Literal["text", "json"]:
    """As in vLLM. Raises InvalidRequest."""
    match parse_qs(scope["query_string"].decode("latin-1")).get("config_format", ["text"]):
        case ["text"]:
            return "text"
        case ["json"]:
            return "json"
    raise InvalidRequest("config_format must be text or json", param="config_format")


def _config(services: Services) -> dict[str, dict[str, str]]:
    """By group, and what the model's folder says."""
    config: dict[str, dict[str, str]] = {}
    for field in FIELDS:
        value = getattr(getattr(services.settings, field.group), field.name)
        config.setdefault(field.group, {})[field.name] = shown_value(field.name, value)
    model = services.model
    config["model"] |= {
        "served_model_name": ", ".join(model.served_names),
        "architecture": model.architecture,
        "max_model_len": str(model.max_model_len),
        "vocab_size": str(model.vocab_size),
    }
    return config


def _as_text(config: dict[str, dict[str, str]]) -> str:
    return "\n".join(f"{group}.{name} = {value}" for group, fields in config.items() for name, value in fields.items())


def _environment() -> dict[str, str]:
    """Settings that came by the environment; of those with secrets only that they are there."""
    secret_names = {ENV_PREFIX + name.upper() for name in SECRET_FIELDS}
    return {
        name: "(hidden)" if name in secret_names else shown_value(name, value)
        for name, value in sorted(os.environ.items())
        if name.startswith(ENV_PREFIX)
    }


class TokenizerInfo:
    """tokenizer_config.json as the model's folder has it, and the chat template in use."""

    def __init__(self, services: Services) -> None:
        self._model = services.model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = self._model
        file = Path(model.path) / "tokenizer_config.json"
        config: Json = msgspec.json.decode(file.read_bytes()) if file.is_file() else {}
        info: Json = {name: _plain(value) for name, value in config.items() if name not in _FILES}
        info.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        if model.chat_template is not None:
            info["chat_template"] = model.chat_template
        await send_json(send, info)


def _plain(value: Any) -> Any:
    """A token that is described by an object is its text, as in vLLM."""
    if isinstance(value, dict):
        return value["content"] if "content" in value else {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
