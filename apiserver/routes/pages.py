"""GET /openapi.json, and pages that are one HTML file each: no build, no other origin, readable without network."""

import base64
import re
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from apiserver.asgi import send_body

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
_HTML = b"text/html; charset=utf-8"


class OpenApi:
    """The document is made on the first request: most workers are never asked."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:  # Any: JSON
        self._make = make
        self._body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._body:
            self._body = msgspec.json.encode(self._make())
        await send_body(send, self._body)


class StaticPage:
    """A file of apiserver/static. Its browser runs only what is in it and talks only to this server."""

    def __init__(self, name: str) -> None:
        self._body = (files("apiserver") / "static" / name).read_bytes()
        self._headers = [
            (b"content-security-policy", _policy(self._body)),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, self._body, content_type=_HTML, headers=self._headers)


def _policy(page: bytes) -> bytes:
    """Content-Security-Policy (https://www.w3.org/TR/CSP3/): the page's own script and style, by their hashes."""
    hashes: dict[bytes, list[bytes]] = {b"script": [], b"style": []}
    for kind, text in _INLINE.findall(page):
        hashes[kind].append(b"'sha256-" + base64.b64encode(sha256(text).digest()) + b"'")
    rules = [b"default-src 'none'", b"connect-src 'self'", b"base-uri 'none'", b"form-action 'none'"]
    rules.append(b"img-src data:")  # the empty icon, so that no browser asks for one
    rules += [kind + b"-src " + b" ".join(values) for kind, values in hashes.items() if values]
    return b"; ".join([*rules, b"frame-ancestors 'none'"])
