"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

import time

from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.chat_messages import render_chat
from apiserver.generation import Prompt
from apiserver.logprobs import TokenTexts
from apiserver.output_formats import OutputFormats
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.generate import answer, check_model, deadline_of, request_id_of
from apiserver.schema.requests import decode_chat
from apiserver.schema.responses import ChatEvents, chat_body
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request, is_truncated
from apiserver.services import Services


class ChatCompletions:
    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer.decoder)
        self._formats = OutputFormats(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_chat(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        request_id = request_id_of(request, scope)
        started_s = time.monotonic()
        text = render_chat(request, services.preloaded.chat_template)
        ids = await self._prompts.encode(
            [text],
            add_special_tokens=bool(request.add_special_tokens),
            bounded_field=None if is_truncated(request) else "messages",
        )
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        output_format = self._formats.format_or_none(request, text)
        if output_format is not None and not output_format.shows_reasoning:
            request.logprobs, request.top_logprobs = False, None  # they would tell what is hidden; so in vLLM
        generation = generation_request(
            request,
            (Prompt(ids[0]),),
            services.model,
            services.settings.server,
            request_id=request_id,
            deadline_s=deadline_of(scope),
            output_format=output_format,
            counts_reasoning=self._formats.has_reasoning,
        )
        response_id = f"chatcmpl-{request_id}"
        events = ChatEvents(response_id, model, self._texts)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=chat_body,
        )  # fmt: skip
