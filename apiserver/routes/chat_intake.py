"""From a chat to what the engines are asked: the way of /v1/chat/completions and of the APIs that are mapped on chats."""

import asyncio
from collections.abc import Sequence
from functools import partial

from msgspec import Struct
from starlette.types import Scope

from apiserver.bad_words import without_bad_words
from apiserver.chat_messages import num_pieces, render_chat
from apiserver.errors import ContextTooLong, InvalidRequest
from apiserver.generation import GenerationRequest, Prompt
from apiserver.output_formats import OutputFormats
from apiserver.prompt_encoding import PromptEncoder
from apiserver.request_template import RequestTemplates
from apiserver.routes.generate import deadline_of
from apiserver.schema.request_shapes import RequestShapes
from apiserver.schema.requests import ChatRequest, TokenizeRequest
from apiserver.schema.structured import asks_for_grammar
from apiserver.services import Services
from apiserver.tools.tool_use import asks_for_calls

INLINE_PIECES = 256  # 2 ms for the slowest of templates


class RenderedChat(Struct, frozen=True):
    text: str
    prompt: Prompt


class ChatIntake:
    """One for all routes of a worker."""

    def __init__(self, services: Services, prompts: PromptEncoder) -> None:
        self._services, self._prompts = services, prompts
        self.formats = OutputFormats(services)
        self._shapes = RequestShapes(services.model, services.settings.server)
        self._request_templates = RequestTemplates(
            services.model.special_tokens, is_trusted=services.settings.server.trust_request_chat_template
        )

    async def rendered(self, chat: ChatRequest, *, bounded_field: str | None) -> RenderedChat:
        """`bounded_field` as of PromptEncoder. Raises InvalidRequest, ContextTooLong."""
        max_model_len = self._services.model.max_model_len
        if bounded_field is not None and len(chat.messages) > max_model_len:
            raise ContextTooLong(
                f"This model's maximum context length is {max_model_len} tokens. However, your messages are "
                f"{len(chat.messages)}. Please reduce their number.",
                param=bounded_field,
            )
        text = await self.text_of(chat)
        ids = await self._prompts.encode(
            [text], add_special_tokens=bool(chat.add_special_tokens), bounded_field=bounded_field
        )
        return RenderedChat(text, Prompt(ids[0]))

    async def text_of(self, chat: ChatRequest | TokenizeRequest) -> str:
        """By the model's template, or the request's own; beside the loop where that may take long. Raises InvalidRequest."""
        if chat.chat_template is None:
            render = partial(render_chat, chat, self._services.preloaded.chat_template)
            return render() if num_pieces(chat) <= INLINE_PIECES else await asyncio.to_thread(render)
        return await self._request_templates.run(chat.chat_template, partial(render_chat, chat))

    async def request(
        self, chat: ChatRequest, rendered: RenderedChat, scope: Scope, request_id: str
    ) -> GenerationRequest:
        """Raises InvalidRequest, ContextTooLong."""
        return await self.batch([chat], [rendered], scope, request_id)

    async def batch(
        self, chats: Sequence[ChatRequest], rendered: Sequence[RenderedChat], scope: Scope, request_id: str
    ) -> GenerationRequest:
        """Of chats that are alike but for their messages; each is a prompt. Beside the loop where a grammar is checked."""
        if asks_for_grammar(chats[0]) or asks_for_calls(chats[0]):
            return await asyncio.to_thread(self._batch, chats, rendered, scope, request_id)
        return self._batch(chats, rendered, scope, request_id)

    def _batch(
        self, chats: Sequence[ChatRequest], rendered: Sequence[RenderedChat], scope: Scope, request_id: str
    ) -> GenerationRequest:
        chat = chats[0]
        formats = [self.formats.format_or_none(one, prompt.text) for one, prompt in zip(chats, rendered, strict=True)]
        output_format = formats[0]
        if len(formats) > 1 and len({None if form is None else form.thinking for form in formats}) > 1:
            raise InvalidRequest("messages: some of the chats end within reasoning, others do not", param="messages")
        if output_format is not None and not output_format.shows_reasoning:
            chat.logprobs, chat.top_logprobs = False, None  # they would tell what is hidden; so in vLLM
        generation = self._shapes.generation_request(
            chat,
            tuple([one.prompt for one in rendered]),
            request_id=request_id,
            deadline_s=deadline_of(scope),
            output_format=output_format,
            counts_reasoning=self.formats.has_reasoning,
        )
        return without_bad_words(generation, chat.bad_words, self._services.preloaded.tokenizer)
