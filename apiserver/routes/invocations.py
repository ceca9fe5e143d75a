"""POST /invocations: what SageMaker sends every request to; the body's fields say which route it is for."""

from collections.abc import Mapping

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.errors import InvalidRequest
from apiserver.schema.requests import decode_with
from apiserver.services import Services

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Invocations:
    def __init__(self, services: Services, endpoints: Mapping[str, ASGIApp]) -> None:
        """`endpoints` by the field that only their bodies have."""
        self._services, self._endpoints = services, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._services.settings.server.max_body_bytes)
        fields = decode_with(_fields, body)
        endpoint = next((endpoint for name, endpoint in self._endpoints.items() if name in fields), None)
        if endpoint is None:
            raise InvalidRequest(f"the body has none of {', '.join(self._endpoints)}: which route is it for?")
        await endpoint(scope, _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
