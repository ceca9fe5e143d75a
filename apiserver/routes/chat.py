"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

import time

from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.logprobs import TokenIds, TokenTexts
from apiserver.routes.chat_intake import ChatIntake
from apiserver.routes.generate import answer, check_model, kinds_or_none, request_id_of
from apiserver.schema.requests import decode_chat
from apiserver.schema.responses import ChatEvents, chat_body, opening_fields_or_none
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import is_truncated
from apiserver.services import Services


class ChatCompletions:
    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer)
        self._token_ids = TokenIds(preloaded.token_table, preloaded.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_chat(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        request_id = request_id_of(request, scope)
        started_s = time.monotonic()
        rendered = await self._intake.rendered(request, bounded_field=None if is_truncated(request) else "messages")
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        generation = await self._intake.request(request, rendered, scope, request_id)
        response_id = f"chatcmpl-{request_id}"
        texts = self._token_ids if request.return_tokens_as_token_ids else self._texts
        events = ChatEvents(response_id, model, texts, opening_fields_or_none(generation))
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=chat_body,
            kinds=kinds_or_none(generation, opens_with_prompt_ids=False),
        )  # fmt: skip
