"""POST /v1/messages and /v1/messages/count_tokens (https://platform.claude.com/docs/en/api/messages)."""

import time

from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.anthropic.conversation import FIELDS, chat_request, counted_chat, merge_late_system
from apiserver.anthropic.events import MessageEvents, message_body
from apiserver.asgi import read_body, send_json
from apiserver.every_part import every_part
from apiserver.field_names import told_as
from apiserver.routes.chat_intake import ChatIntake
from apiserver.routes.generate import answer, check_model
from apiserver.schema.messages import decode_count_tokens, decode_messages
from apiserver.schema.requests import ChatRequest
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.services import Services


class Messages:
    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_messages(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        request_id = scope["state"]["request_id"]
        with told_as(FIELDS):
            chat = _fitted(chat_request(request), services)
            refuse_unsupported(chat)
            started_s = time.monotonic()
            rendered = await self._intake.rendered(chat, bounded_field="messages")
            services.metrics.tokenize.observe(time.monotonic() - started_s)
            generation = await self._intake.request(chat, rendered, scope, request_id)
        if generation.output_format is not None:
            generation = structs.replace(generation, output_format=every_part(generation.output_format))
        response_id = f"msg_{request_id}"
        events = MessageEvents(response_id, model, request_id, generation)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=message_body,
        )  # fmt: skip


class CountTokens:
    """The conversation may be longer than the context: clients ask in order to cut it."""

    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_count_tokens(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        refuse_unsupported(request)
        with told_as(FIELDS):
            chat = _fitted(counted_chat(request), services)
            refuse_unsupported(chat)
            rendered = await self._intake.rendered(chat, bounded_field=None)
        await send_json(send, {"input_tokens": rendered.prompt.num_tokens})


def _fitted(chat: ChatRequest, services: Services) -> ChatRequest:
    """As the model's template can say it."""
    template = services.preloaded.chat_template
    has_late_system = any(message.role == "system" for message in chat.messages[1:])
    if has_late_system and template is not None and not template.takes_late_system:
        merge_late_system(chat)
    return chat
