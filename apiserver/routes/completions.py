"""POST /v1/completions (https://platform.openai.com/docs/api-reference/completions)."""

import asyncio
import time
from functools import partial

from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.bad_words import without_bad_words
from apiserver.generation import GenerationRequest, Prompt
from apiserver.logprobs import TokenIds, TokenTexts
from apiserver.prompt_encoding import PromptEncoder
from apiserver.routes.generate import answer, check_model, deadline_of, kinds_or_none, request_id_of
from apiserver.schema.requests import CompletionRequest, decode_completion
from apiserver.schema.responses import CompletionEvents, completion_body
from apiserver.schema.structured import asks_for_grammar
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request, is_truncated, prompts_of
from apiserver.services import Services


class Completions:
    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer)
        self._token_ids = TokenIds(preloaded.token_table, preloaded.tokenizer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_completion(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        refuse_unsupported(request)
        request_id = request_id_of(request, scope)
        build = partial(
            generation_request,
            request,
            await encoded_prompts(request, services, self._prompts),
            services.model,
            services.settings.server,
            request_id=request_id,
            deadline_s=deadline_of(scope),
        )
        generation = await asyncio.to_thread(build) if asks_for_grammar(request) else build()
        generation = without_bad_words(generation, request.bad_words, services.preloaded.tokenizer)
        if request.echo and not request.return_token_ids:  # with ids the prompt is echoed as ids alone, as in vLLM
            generation = await _with_texts(generation, self._prompts)
        response_id = f"cmpl-{request_id}"
        texts = self._token_ids if request.return_tokens_as_token_ids else self._texts
        events = CompletionEvents(response_id, model, texts)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=completion_body,
            kinds=kinds_or_none(generation, opens_with_prompt_ids=True),
        )  # fmt: skip


async def encoded_prompts(request: CompletionRequest, services: Services, encoder: PromptEncoder) -> tuple[Prompt, ...]:
    """Raises InvalidRequest, ContextTooLong."""
    prompts = prompts_of(request, services.settings.server, services.model.vocab_size)
    if isinstance(prompts[0], Prompt):
        return tuple(prompts)
    started_s = time.monotonic()
    encoded = await encoder.encode(
        prompts,
        add_special_tokens=request.add_special_tokens is not False,
        bounded_field=None if is_truncated(request) else "prompt",
    )
    services.metrics.tokenize.observe(time.monotonic() - started_s)
    return tuple(map(Prompt, encoded, prompts) if request.echo else map(Prompt, encoded))


async def _with_texts(generation: GenerationRequest, encoder: PromptEncoder) -> GenerationRequest:
    """Of prompts that came as ids, or were cut, the text is that of their ids."""
    prompts = [
        prompt if prompt.text is not None else Prompt(prompt.ids, await encoder.decode(prompt.as_list()))
        for prompt in generation.prompts
    ]
    return structs.replace(generation, prompts=tuple(prompts))
