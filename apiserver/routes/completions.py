"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

import time
import uuid
from array import array

from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.generation import Prompt
from apiserver.prompt_encoding import encode_prompt
from apiserver.routes.generate import answer, check_model, deadline_of
from apiserver.schema.requests import decode_completion
from apiserver.schema.responses import CompletionEvents, completion_body
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request, prompts_of
from apiserver.services import Services


class Completions:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        body = await read_body(scope, receive, services.settings.server.max_body_bytes)
        request = decode_completion(body)
        model = check_model(request.model, services)
        refuse_unsupported(request)
        prompts = prompts_of(request, services.settings.server, services.model.vocab_size)
        add_special_tokens = request.add_special_tokens is not False
        generation = generation_request(
            request,
            tuple([await self._prompt(prompt, add_special_tokens) for prompt in prompts]),
            services.model,
            services.settings.server,
            request_id=scope["state"]["request_id"],
            deadline_s=deadline_of(scope),
        )
        response_id = f"cmpl-{uuid.uuid4().hex}"
        events = CompletionEvents(response_id, model)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=completion_body,
        )  # fmt: skip

    async def _prompt(self, prompt: str | list[int], add_special_tokens: bool) -> Prompt:
        if isinstance(prompt, list):
            return Prompt(array("I", prompt).tobytes())
        started_s = time.monotonic()
        services = self._services
        ids = await encode_prompt(services.preloaded.tokenizer, prompt, add_special_tokens=add_special_tokens)
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        return Prompt(ids)
