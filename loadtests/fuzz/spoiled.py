"""One HTTP request as bytes, valid at first, and the ways to spoil it: in its JSON, in its bytes, in its head.

All of it is a function of the random source: a seed gives the same requests again.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apiserver.openapi.operations import OPERATIONS

Json = Any  # Any: whatever JSON has, and some that it has not


@dataclass(frozen=True)
class Request:
    """Not yet on the wire. `body` wins over `content`, which is what it says as JSON."""

    method: str
    path: str
    content: Json = None
    body: bytes | None = None
    head: Mapping[str, str] = field(default_factory=dict)  # over the usual ones; "" leaves one out
    version: str = "HTTP/1.1"
    wire: Callable[[bytes], bytes] | None = None  # what becomes of the whole request's bytes

    def encode(self) -> bytes:
        body = self.body
        if body is None:
            body = b"" if self.content is None else json.dumps(self.content).encode("utf-8", "surrogatepass")
        usual = {
            "host": "test",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        fields = {**usual, **self.head}
        lines = [f"{self.method} {self.path} {self.version}", *(f"{k}: {v}" for k, v in fields.items() if v)]
        raw = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body
        return raw if self.wire is None else self.wire(raw)


_CHAT: dict[str, Json] = {"model": "tiny", "messages": [{"role": "user", "content": "tell me a story"}]}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}

VALID: tuple[Request, ...] = (
    Request("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 8, "seed": 1}),
    Request("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 8, "stream": True, "n": 2, "stop": ["x", "yz"]}),
    Request("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    Request("POST", "/v1/chat/completions", {**_CHAT, "max_tokens": 4, "tools": [_TOOL], "tool_choice": "none"}),
    Request(
        "POST", "/v1/chat/completions/batch", {"messages": [_CHAT["messages"]] * 2, "max_tokens": 4, "logprobs": True}
    ),
    Request("POST", "/v1/completions", {"prompt": ["a", "b c"], "max_tokens": 8, "logit_bias": {"7": 1.5}}),
    Request(
        "POST",
        "/v1/completions",
        {"prompt": "a b c", "max_tokens": 0, "echo": True, "logprobs": 1, "prompt_logprobs": 2},
    ),
    Request(
        "POST",
        "/v1/completions",
        {
            "prompt": [5, 6, 7],
            "stream": True,
            "echo": True,
            "return_token_ids": True,
            "stream_interval": 3,
            "bad_words": ["x"],
            "logprobs": 1,
            "logprob_token_ids": [5],
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    Request("POST", "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 8, "stream": True, "temperature": 0.5}),
    Request("POST", "/v1/embeddings", {"input": ["a", "b c"], "dimensions": 4, "encoding_format": "base64"}),
    Request("POST", "/v1/responses", {"input": "hello", "max_output_tokens": 8, "store": True}),
    Request(
        "POST", "/v1/responses", {"input": [{"role": "user", "content": "a"}], "max_output_tokens": 8, "stream": True}
    ),
    Request("POST", "/v1/messages", {"max_tokens": 8, "messages": [{"role": "user", "content": "hi"}], "system": "s"}),
    Request("POST", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}),
    Request("POST", "/v1/chat/completions/render", {**_CHAT, "max_tokens": 8, "stop": "x", "n": 2}),
    Request("POST", "/v1/completions/render", {"prompt": ["a", "b c"], "max_tokens": 8}),
    Request(
        "POST",
        "/inference/v1/generate",
        {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 8, "n": 2, "logprobs": 1}, "stream": True},
    ),
    Request(
        "POST",
        "/inference/v1/generate",
        {"token_ids": [1, 2], "sampling_params": {"max_tokens": 4, "stop": ["x"], "seed": 1}, "output_mode": "text"},
    ),
    Request("POST", "/tokenize", {"prompt": "hello"}),
    Request("POST", "/detokenize", {"tokens": [1, 2, 3]}),
    Request("POST", "/abort_requests", {"request_ids": ["nobody's"]}),
    Request("POST", "/inference/v1/abort_requests", {"request_ids": ["nobody's", "chatcmpl-x"]}),
    Request("POST", "/start_profile", {"profile_prefix": "a", "delay_iterations": 1, "max_iterations": 2}),  # a 404
    Request("GET", "/v1/models"),
    Request("GET", "/v1/responses/resp_0"),
    Request("GET", "/openapi.json"),
)
FIELDS: Mapping[str, tuple[str, ...]] = {
    path: operation.body.__struct_fields__ for (_, path), operation in OPERATIONS.items() if operation.body is not None
}
ODD_VALUES: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(2**63) - 1,
    float("nan"), float("inf"), "", "a", "\0", "\ud800", "🙂" * 50, "a" * 5000, "<|im_end|>", "{{ 1/0 }}", [], {}, [[]],
    [None], [0], [""], ["a", 1], {"a": {}}, {"": ""}, [-1, 2**40], {"type": "object"}, {"type": "text", "text": 1},
)  # fmt: skip
ODD_TEXT = (
    "0", "-1", "+5", "1e3", "99999999999999999999", " 7", "5, 5", "gzip", "chunked", "chunked, chunked", "identity",
    "application/xml", "text/plain; charset=utf-16", "\u00ff", "a" * 300, "a" * 70_000, "bytes=0-1", "100-continue",
    "websocket", "*", "Bearer", "x\x01y", "../../etc/passwd",
)  # fmt: skip
NAMES = (
    "content-length", "transfer-encoding", "content-type", "host", "connection", "expect", "upgrade", "x-request-id",
    "authorization", "content-encoding", "accept", "origin", "traceparent", "range", "x", "x-api-key",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "BREW", "get", "")
PATHS = (
    "/", "", "*", "//", "/v1", "/v1/", "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/../models", "/v1/models/tiny",
    "/v1/responses/%2e%2e", "/v1/responses/resp_ffffffffffffffff", "/v1/responses/x/cancel", "/metrics", "/docs", "/load",
    "/v1/completions?stream=true", "/v1/models#a", "/" + "a" * 9000, "http://else.where/v1/models", "/health", "/\u00e9",
)  # fmt: skip


def mutated(source: random.Random) -> Request:
    """A valid request with one to four faults, or with none."""
    request = source.choice(VALID)
    for _ in range(source.choice((0, 1, 1, 1, 2, 3, 4))):
        request = source.choices((_in_json, _in_bytes, _in_head), weights=(6, 2, 2))[0](request, source)
    return request


def _in_json(request: Request, source: random.Random) -> Request:
    if not isinstance(request.content, dict) or request.body is not None:
        return replace(request, content=source.choice(ODD_VALUES))
    content = json.loads(json.dumps(request.content))
    if source.random() < 0.5:  # a field of this route, or of another
        names = FIELDS[source.choice(list(FIELDS))] if source.random() < 0.1 else FIELDS.get(request.path, ("a",))
        content[source.choice(names)] = source.choice(ODD_VALUES)
        return replace(request, content=content)
    places = _places(content)
    if not places:
        return request
    holder, key = source.choice(places)
    match source.randrange(4):
        case 0:
            del holder[key]
        case 1:
            holder[key] = _nested(holder[key], source.choice((1, 10, 60)))
        case 2 if isinstance(holder, list):
            holder.extend([holder[key]] * source.choice((1, 50)))
        case _:
            holder[key] = source.choice(ODD_VALUES)
    return replace(request, content=content)


def _places(node: Json) -> list[tuple[Json, Json]]:
    """Every value, as its holder and its key there."""
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [place for key, value in pairs for place in ((node, key), *_places(value))]


def _nested(value: Json, depth: int) -> Json:
    for _ in range(depth):
        value = [value]
    return value


def _in_bytes(request: Request, source: random.Random) -> Request:
    body = bytearray(request.body if request.body is not None else json.dumps(request.content).encode())
    at = source.randrange(len(body) + 1)
    match source.randrange(7):
        case 0 if at < len(body):
            body[at] ^= 1 << source.randrange(8)
        case 1:
            body[at:at] = source.randbytes(source.choice((1, 4, 100)))
        case 2:
            del body[at : at + source.choice((1, 5, 1000))]
        case 3:
            body[at:at] = body[:at]
        case 4:
            body = bytearray(b"[" * 100_000 + bytes(body))
        case 5:
            body[at:at] = source.choice((b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\0", b"1" * 500, b"}{"))
        case _:
            body = bytearray(b'{"a":' * 500 + bytes(body) + b"}" * 500)
    return replace(request, body=bytes(body))


def _in_head(request: Request, source: random.Random) -> Request:
    match source.randrange(6):
        case 0:
            return replace(request, method=source.choice(METHODS))
        case 1:
            return replace(request, path=source.choice(PATHS))
        case 2:
            return replace(request, version=source.choice(("HTTP/1.0", "HTTP/2.0", "HTTP/1.9", "HTTP", "", "ICY/1.1")))
        case 3:
            name = source.choice(NAMES)
            return replace(request, head={**request.head, name: source.choice(("", *ODD_TEXT))})
        case 4:
            many = {f"x-{number}": "v" * source.choice((1, 100)) for number in range(source.choice((5, 200, 2000)))}
            return replace(request, head={**request.head, **many})
        case _:
            return replace(request, wire=_damage(source))


def _damage(source: random.Random) -> Callable[[bytes], bytes]:
    """One fault anywhere in the bytes, or their end before their time."""
    place, kind, noise = source.random(), source.randrange(4), source.randbytes(8)

    def damage(raw: bytes) -> bytes:
        at = int(place * len(raw))
        match kind:
            case 0:
                return raw[:at]
            case 1:
                return raw[:at] + noise + raw[at:]
            case 2:
                return raw[:at] + noise[:1] + raw[at + 1 :]
            case _:
                return raw.replace(b"\r\n", b"\n", 1 + int(place * 4))

    return damage
