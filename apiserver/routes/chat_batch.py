"""POST /v1/chat/completions/batch: several chats in one request, one choice for each (vLLM's)."""

import time

from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.errors import InvalidRequest
from apiserver.field_names import told_as
from apiserver.logprobs import TokenIds, TokenTexts
from apiserver.routes.chat_intake import ChatIntake, RenderedChat
from apiserver.routes.generate import answer, check_model, kinds_or_none, request_id_of
from apiserver.schema.requests import BatchChatRequest, ChatRequest, decode_batch
from apiserver.schema.responses import ChatEvents, chat_body
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import is_truncated
from apiserver.services import Services


class ChatBatch:
    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer)
        self._token_ids = TokenIds(preloaded.token_table, preloaded.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_batch(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        self._check_number(request)
        request_id = request_id_of(request, scope)
        started_s = time.monotonic()
        chats = request.chats()
        rendered = [await self._rendered(place, chat) for place, chat in enumerate(chats)]
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        generation = await self._intake.batch(chats, rendered, scope, request_id)
        if generation.details is not None:  # an answer has one place for a prompt's ids; as in vLLM it stays empty
            details = structs.replace(generation.details, has_prompt_ids=False)
            generation = structs.replace(generation, details=details)
        response_id = f"chatcmpl-{request_id}"
        texts = self._token_ids if request.return_tokens_as_token_ids else self._texts
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=ChatEvents(response_id, model, texts), body=chat_body,
            kinds=kinds_or_none(generation, opens_with_prompt_ids=False),
        )  # fmt: skip

    async def _rendered(self, place: int, chat: ChatRequest) -> RenderedChat:
        with told_as({"messages": f"messages[{place}]"}):
            return await self._intake.rendered(chat, bounded_field=None if is_truncated(chat) else "messages")

    def _check_number(self, request: BatchChatRequest) -> None:
        most = self._services.settings.server.max_prompts_per_request
        if not 1 <= len(request.messages) <= most:
            raise InvalidRequest(f"messages must be 1 to {most} chats, not {len(request.messages)}", param="messages")
