"""POST /inference/v1/generate: token ids in, token ids out (vLLM 0.33's "token in, token out"), streamed or whole.

For servers in front of this one that render and read answers themselves. Prompts come from /v1/.../render, here or elsewhere.
"""

import asyncio
from array import array
from functools import partial

from msgspec import structs
from starlette.types import Receive, Scope, Send

from apiserver.answer_details import AnswerDetails
from apiserver.asgi import read_body
from apiserver.bad_words import without_bad_words
from apiserver.collected_details import CollectedDetails
from apiserver.errors import InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.logprobs import TokenTexts
from apiserver.output_formats import OutputFormats
from apiserver.routes.generate import ChoiceKinds, answer, check_model, deadline_of, request_id_of
from apiserver.schema.requests import CompletionRequest
from apiserver.schema.structured import asks_for_grammar
from apiserver.schema.token_requests import GenerateRequest, completion_of, decode_generate
from apiserver.schema.token_responses import GenerateAnswers
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import check_token_ids, generation_request
from apiserver.services import Services
from apiserver.token_choices import CollectedTokens, StreamedTokens, UnreadText
from ipc.messages import Thinking

SAMPLING = "sampling_params."
TAIL = 64  # ids of a prompt that may hold a marker of reasoning


class Generate:
    def __init__(self, services: Services) -> None:
        self._services = services
        preloaded = services.preloaded
        self._texts = TokenTexts(preloaded.token_table, preloaded.tokenizer)
        self._formats = OutputFormats(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = decode_generate(await read_body(scope, receive, services.settings.server.max_body_bytes))
        model = check_model(request.model, services)
        completion = completion_of(request, services.model.max_model_len)
        refuse_unsupported(request)
        refuse_unsupported(request.sampling_params, SAMPLING)
        refuse_unsupported(completion, SAMPLING)
        check_token_ids("token_ids", request.token_ids, services.model.vocab_size)
        build = partial(self._generation, request, completion, scope, request_id_of(completion, scope))
        generation = await asyncio.to_thread(build) if asks_for_grammar(completion) else build()
        has_text = request.output_mode == "text"
        answers = GenerateAnswers(
            response_id := f"generate-tokens-{generation.request_id}",
            self._texts,
            request.token_ids,
            has_text=has_text,
            shows_prompt=bool(request.return_token_ids),
        )
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=answers, body=answers.body,
            kinds=self._kinds(generation, has_text=has_text),
        )  # fmt: skip

    def _kinds(self, generation: GenerationRequest, *, has_text: bool) -> ChoiceKinds:
        streamed = partial(StreamedTokens, details=generation.details or AnswerDetails())
        is_read = has_text or bool(generation.stop)
        collected = CollectedTokens if generation.details is None else CollectedDetails
        return ChoiceKinds(streamed, collected, None if is_read else self._unread_text)

    def _unread_text(self) -> UnreadText:
        return UnreadText(None, self._services.preloaded.tokenizer)

    def _generation(
        self, request: GenerateRequest, completion: CompletionRequest, scope: Scope, request_id: str
    ) -> GenerationRequest:
        """Raises InvalidRequest, ContextTooLong."""
        if not request.token_ids:
            raise InvalidRequest("token_ids must not be empty", param="token_ids")
        services = self._services
        generation = generation_request(
            completion,
            (Prompt(array("I", request.token_ids).tobytes()),),
            services.model,
            services.settings.server,
            request_id=request_id,
            deadline_s=deadline_of(scope),
        )
        generation = without_bad_words(generation, completion.bad_words, services.preloaded.tokenizer)
        thinking = self._thinking_or_none(request, generation)
        if thinking is None:
            return generation
        return structs.replace(generation, sampling=structs.replace(generation.sampling, thinking=thinking))

    def _thinking_or_none(self, request: GenerateRequest, generation: GenerationRequest) -> Thinking | None:
        """Where something depends on it: a limit, or the place where the grammar begins."""
        budget = request.sampling_params.thinking_token_budget
        if generation.sampling.grammar is None and budget in (None, -1):
            return None
        if request.reasoning_ended and self._formats.has_reasoning:
            return None
        tail = self._services.preloaded.tokenizer.decode(request.token_ids[-TAIL:], skip_special_tokens=False)
        given = request.reasoning_parser_kwargs
        return self._formats.thinking_after(tail, budget, given.chat_template_kwargs if given is not None else {})
