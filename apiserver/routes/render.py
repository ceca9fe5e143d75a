"""POST /v1/chat/completions/render and /v1/completions/render: what the same request would ask of the engine, as token ids.

Whoever places requests on several servers (llm-d's scheduler) asks here what a prompt's tokens are; what comes back is what
POST /inference/v1/generate takes. The request is checked as if it were served, and nothing is generated.
"""

import asyncio
import time
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body, send_json
from apiserver.chat_messages import template_variables
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.chat_intake import ChatIntake
from apiserver.routes.completions import encoded_prompts
from apiserver.routes.generate import check_model, request_id_of
from apiserver.schema.rendered import rendered_request
from apiserver.schema.requests import decode_chat, decode_completion
from apiserver.schema.structured import asks_for_grammar
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request, is_truncated
from apiserver.services import Services


class RenderChat:
    def __init__(self, services: Services, intake: ChatIntake) -> None:
        self._services, self._intake = services, intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, intake = self._services, self._intake
        request = decode_chat(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        refuse_unsupported(request)
        request_id = request_id_of(request, scope)
        started_s = time.monotonic()
        rendered = await intake.rendered(request, bounded_field=None if is_truncated(request) else "messages")
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        generation = await intake.request(request, rendered, scope, request_id)
        answer: dict[str, Any] = rendered_request(  # Any: JSON
            request,
            generation,
            0,
            request_id=f"chatcmpl-{request_id}",
            reasoning_ended=intake.formats.has_ended_reasoning(request, rendered.text),
            template_variables=template_variables(request) if intake.formats.has_reasoning else None,
        )
        await send_json(send, answer)


class RenderCompletion:
    """One answer for each prompt."""

    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_completion(await read_body(scope, receive, services.settings.server.max_body_bytes))
        check_model(request.model, services)
        refuse_unsupported(request)
        request_id = f"cmpl-{request_id_of(request, scope)}"
        build = partial(
            generation_request,
            request,
            await encoded_prompts(request, services, self._prompts),
            services.model,
            services.settings.server,
            request_id=request_id,
            deadline_s=None,
        )
        generation = await asyncio.to_thread(build) if asks_for_grammar(request) else build()
        places = range(len(generation.prompts))
        ids = [request_id if len(places) == 1 else f"{request_id}-{place}" for place in places]
        await send_json(send, [rendered_request(request, generation, place, request_id=ids[place]) for place in places])
