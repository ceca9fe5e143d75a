"""The few ASGI moves the routes share: read a bounded body, send JSON, answer an error."""

import asyncio
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from apiserver.errors import ApiError, BodyTooLarge, InvalidRequest

JSON = b"application/json"
LINGER_S = 2.0


class ClientLeft(Exception):
    """The connection ended before the request was whole: there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Raises BodyTooLarge at the limit, before reading on, and ClientLeft."""
    declared = header(scope, b"content-length")
    if declared is not None:
        if not declared.isdigit():
            raise InvalidRequest("Content-Length is not a number")
        if int(declared) > limit_bytes:
            raise BodyTooLarge(f"the body has {declared.decode()} bytes, at most {limit_bytes} are taken")
    parts = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body = message.get("body", b"")
        num_bytes += len(body)
        if num_bytes > limit_bytes:
            raise BodyTooLarge(f"the body has more than the {limit_bytes} bytes that are taken")
        parts.append(body)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def send_body(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    content_type: bytes = JSON,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(send: Send, content: Any, *, status: int = 200) -> None:
    await send_body(send, msgspec.json.encode(content), status=status)


async def send_error(send: Send, error: ApiError) -> None:
    await send_body(send, error.body(), status=error.status, headers=error.headers)


async def refuse_body(receive: Receive, send: Send, error: ApiError) -> None:
    """Answer a client that may still be sending, and take in and drop what it sends for LINGER_S.

    To close at once would reset the connection, and the client would never see the answer.
    """
    body = error.body()
    fields = [(b"content-type", JSON), (b"content-length", str(len(body)).encode()), *error.headers]
    await send({"type": "http.response.start", "status": error.status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
