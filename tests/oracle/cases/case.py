"""One request that both servers are asked, and the ones that most cases begin from."""

from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
FRANCE = "The capital of France is"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Case:
    """`body` None: a GET. Bytes are sent as they are."""

    name: str  # area/what-it-asks
    path: str
    body: dict[str, Any] | bytes | None  # Any: JSON, here and below


def chat(name: str, **fields: Any) -> Case:
    """A greedy chat of a few tokens, but for `fields`; one that is ... is left out."""
    return Case(name, CHAT, _body({"model": "m", "messages": QUESTION, "max_tokens": 8, "temperature": 0}, fields))


def completion(name: str, **fields: Any) -> Case:
    """A greedy completion of a few tokens, but for `fields`; one that is ... is left out."""
    return Case(name, COMPLETIONS, _body({"model": "m", "prompt": FRANCE, "max_tokens": 8, "temperature": 0}, fields))


def _body(defaults: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**defaults, **fields}.items() if value is not ...}
