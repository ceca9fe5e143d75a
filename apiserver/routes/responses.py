"""POST /v1/responses; GET and DELETE of a stored one (https://platform.openai.com/docs/api-reference/responses)."""

import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body, send_body, send_json
from apiserver.errors import InvalidRequest, PreviousResponseNotFound, ResponseNotFound
from apiserver.every_part import every_part
from apiserver.field_names import told_as
from apiserver.generation import CollectedChoice, Usage
from apiserver.logprobs import TokenTexts
from apiserver.responses.conversation import FIELDS, Item, chat_request, items_of
from apiserver.responses.events import ResponseEvents, response_body
from apiserver.responses.response_object import ResponseObject
from apiserver.responses.store import StoredResponse
from apiserver.responses.truncation import fitting_chat
from apiserver.routes.chat_intake import ChatIntake, RenderedChat
from apiserver.routes.generate import answer, check_model, request_id_of
from apiserver.schema.requests import ChatRequest, Message
from apiserver.schema.response_requests import ResponseRequest, decode_response_request
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.services import Services


class Responses:
    """POST: creates one."""

    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_response_request(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        _refuse_unsupported(request)
        owner = owner_of(scope)
        previous = self._previous_items(request, owner)
        with told_as(FIELDS):
            chat = chat_request(request, previous)
            refuse_unsupported(chat)
            request_id = request_id_of(chat, scope)
            started_s = time.monotonic()
            rendered = await self._rendered(chat, is_cut=request.truncation == "auto")
            services.metrics.tokenize.observe(time.monotonic() - started_s)
            generation = await self._intake.request(chat, rendered, scope, request_id)
            generation = structs.replace(generation, output_format=every_part(generation.output_format))
        is_stored = self._is_stored(request)
        store = services.response_store
        response_id = store.new_id() if store is not None and is_stored else f"resp_{request_id}"
        response = ResponseObject(response_id, model, request, generation, is_stored=is_stored)
        said = _encoded([*previous, *items_of(request)]) if is_stored else b""

        def keep(ended: dict[str, Any]) -> None:  # Any: JSON
            if store is None or not is_stored:
                return
            stored = StoredResponse(msgspec.json.encode(ended), said)
            ended["store"] = store.put(response_id, stored, owner=owner)

        def body(_response_id: str, _model: str, choices: list[CollectedChoice], usage: Usage) -> bytes:
            return response_body(response, choices[0], usage, keep)

        events = ResponseEvents(response, self._texts, keep)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=body,
        )  # fmt: skip

    def _is_stored(self, request: ResponseRequest) -> bool:
        """By default, where there is a store."""
        if self._services.response_store is not None:
            return request.store is not False
        if request.store:
            raise InvalidRequest("store: this server stores no responses (--response-store-bytes)", param="store")
        return False

    def _previous_items(self, request: ResponseRequest, owner: int) -> list[Item]:
        """What was said up to the response that this one goes on from."""
        response_id, store = request.previous_response_id, self._services.response_store
        if response_id is None:
            return []
        stored = store.get(response_id, owner=owner) if store is not None else None
        if stored is None:
            raise PreviousResponseNotFound(
                f"Previous response with id '{response_id}' not found.", param="previous_response_id"
            )
        return [*msgspec.json.decode(stored.items), *msgspec.json.decode(stored.response)["output"]]

    async def _rendered(self, chat: ChatRequest, *, is_cut: bool) -> RenderedChat:
        """And sets how many tokens there may be at the most: what was asked for, or less where the context ends."""
        max_model_len = self._services.model.max_model_len

        def render(messages: list[Message]) -> Awaitable[RenderedChat]:
            return self._intake.rendered(structs.replace(chat, messages=messages), bounded_field=None)

        if is_cut:
            wanted = min(chat.max_tokens or 1, max_model_len - 1)
            rendered = await fitting_chat(chat.messages, max_model_len - wanted, render)
        else:
            rendered = await self._intake.rendered(chat, bounded_field="messages")
        room = max_model_len - rendered.prompt.num_tokens
        if chat.max_tokens is not None and room > 0:
            chat.max_tokens = min(chat.max_tokens, room)
        return rendered


class StoredResponses:
    """GET and DELETE: what is stored of one."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response_id, owner = scope["path_params"]["response_id"], owner_of(scope)
        if scope["method"] == "DELETE":
            store = self._services.response_store
            if store is None or not store.remove(response_id, owner=owner):
                raise _not_found(response_id)
            await send_json(send, {"id": response_id, "object": "response", "deleted": True})
            return
        for name, values in parse_qs(scope["query_string"].decode("latin-1")).items():
            if name == "starting_after" or (name == "stream" and values[-1].lower() not in ("false", "0")):
                raise InvalidRequest(f"{name}: events are not stored, only the response is", param=name)
        await send_body(send, stored_or_404(self._services, response_id, owner).response)


class CancelResponse:
    """POST: only what runs in the background can be cancelled, and nothing does."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stored_or_404(self._services, scope["path_params"]["response_id"], owner_of(scope))
        raise InvalidRequest("Cannot cancel a synchronous response.", param="response_id")


def stored_or_404(services: Services, response_id: str, owner: int) -> StoredResponse:
    stored = services.response_store.get(response_id, owner=owner) if services.response_store is not None else None
    if stored is None:
        raise _not_found(response_id)
    return stored


def owner_of(scope: Scope) -> int:
    """A number for the API key the request came with; 0: the server asks for none."""
    digest: bytes = scope["state"].get("key_digest", b"")
    return int.from_bytes(digest[:8], "little")


def _encoded(items: list[Item]) -> bytes:
    """Before anything is computed for what could not be stored."""
    try:
        return msgspec.json.encode(items)
    except RecursionError:
        raise InvalidRequest("input is nested too deeply", param="input") from None


def _not_found(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(f"Response with id '{response_id}' not found.", param="response_id")


def _refuse_unsupported(request: ResponseRequest) -> None:
    refuse_unsupported(request)
    if request.text is not None:
        refuse_unsupported(request.text, "text.")
    if request.reasoning is not None:
        refuse_unsupported(request.reasoning, "reasoning.")
