"""One vector per prompt, as clients read it: cut to the dimensions asked for, of length 1, as floats or base64.

https://platform.openai.com/docs/api-reference/embeddings (2026-11); base64 holds little-endian float32.
"""

import base64
import math
import time
from array import array
from typing import Any

import msgspec
from msgspec import Struct

from apiserver.generation import CollectedChoice, EmbeddedChoice, Usage

_encode = msgspec.json.encode


class EmbeddingForm(Struct, frozen=True):
    """How one request wants its vectors."""

    dimensions: int | None  # None: all
    is_normalized: bool
    is_base64: bool

    def of(self, values: "array[float]") -> list[float] | str:
        vector = values[: self.dimensions]
        if self.is_normalized:
            length = math.hypot(*vector) or 1.0
            vector = array("f", [value / length for value in vector])
        return base64.b64encode(vector.tobytes()).decode() if self.is_base64 else vector.tolist()


def embedding_body(
    response_id: str, model: str, choices: list[CollectedChoice], usage: Usage, form: EmbeddingForm
) -> bytes:
    return _encode(
        {
            "id": response_id,
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [_row(choice, form) for choice in choices],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
    )


def _row(choice: CollectedChoice, form: EmbeddingForm) -> dict[str, Any]:  # Any: JSON
    assert isinstance(choice, EmbeddedChoice)
    return {"index": choice.index, "object": "embedding", "embedding": form.of(choice.embedding)}
