"""Body of POST /v1/embeddings as clients send it: OpenAI's fields, and those vLLM 0.32 adds for pooling models."""

from typing import Literal

import msgspec
from msgspec import Struct

from apiserver.schema.requests import NoEffect, Unserved, decode_with


class EmbeddingRequest(Struct, kw_only=True):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    pooling: Literal["last", "mean"] | None = None  # this server's: instead of --embedding-pooling
    use_activation: bool | None = None  # vLLM's: False leaves the vector as long as it is, else its length becomes 1
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    priority: int | None = 0
    request_id: str | None = None
    cache_salt: str | None = None

    user: NoEffect = None

    messages: Unserved = None
    normalize: Unserved = None
    padding: Unserved = None
    embed_dtype: Unserved = None
    endianness: Unserved = None
    chat_template: Unserved = None
    chat_template_kwargs: Unserved = None
    mm_processor_kwargs: Unserved = None


_embedding = msgspec.json.Decoder(EmbeddingRequest)


def decode_embedding(body: bytes) -> EmbeddingRequest:
    """Raises InvalidRequest."""
    return decode_with(_embedding, body)
