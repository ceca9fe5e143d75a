"""Chats that differ in their messages alone are validated once.

Clients send the same parameters again and again, and to check some forty of them costs more than to tokenize a short
prompt. So a GenerationRequest is remembered by all typed fields of the chat that it came from, and the next chat with the
same fields gets a copy with its own prompt. What depends on more than these fields is validated every time.
"""

import typing
from operator import attrgetter
from typing import Any

from msgspec import structs

from apiserver.generation import GenerationRequest, Prompt
from apiserver.parsed_text import OutputFormat
from apiserver.schema.requests import ChatRequest
from apiserver.schema.structured import asks_for_grammar
from apiserver.schema.validate import generation_request, max_tokens_of
from config.model_folder import ModelFolder
from config.settings import ServerSettings

MAX_SHAPES = 256  # strings among the fields are bounded by the validation, so this bounds the memory

OF_ONE_REQUEST = {"messages", "model", "request_id", "chat_template", "chat_template_kwargs", "documents"}
"""Fields that have had their effect when there is a prompt, and may be long."""

_hints = typing.get_type_hints(ChatRequest)
_shape_of = attrgetter(
    *(name for name in ChatRequest.__struct_fields__ if name not in OF_ONE_REQUEST and _hints[name] is not Any)
)


class RequestShapes:
    """Of one worker."""

    def __init__(self, model: ModelFolder, limits: ServerSettings) -> None:
        self._model, self._limits = model, limits
        self._known: dict[tuple[Any, ...], GenerationRequest] = {}  # Any: values of fields

    def generation_request(
        self,
        chat: ChatRequest,
        prompts: tuple[Prompt, ...],
        *,
        request_id: str,
        deadline_s: float | None,
        output_format: OutputFormat | None,
        counts_reasoning: bool,
    ) -> GenerationRequest:
        """Raises InvalidRequest, ContextTooLong."""
        is_plain = len(prompts) == 1 and output_format is None and not _needs_validation(chat)
        shape = _shape_or_none(chat) if is_plain else None
        known = None if shape is None else self._known.get(shape)
        if known is not None:
            max_tokens = max_tokens_of(chat, prompts[0].num_tokens, self._model)
            return structs.replace(
                known, prompts=prompts, max_tokens=(max_tokens,), request_id=request_id, deadline_s=deadline_s,
                counts_reasoning=counts_reasoning,
            )  # fmt: skip
        validated = generation_request(
            chat, prompts, self._model, self._limits, request_id=request_id, deadline_s=deadline_s,
            output_format=output_format, counts_reasoning=counts_reasoning,
        )  # fmt: skip
        if shape is not None:
            if len(self._known) >= MAX_SHAPES:
                self._known.clear()
            self._known[shape] = validated
        return validated


def _needs_validation(chat: ChatRequest) -> bool:
    """Whether more than its prompt's length would have to be looked at again."""
    return bool(chat.min_tokens) or chat.truncate_prompt_tokens is not None or asks_for_grammar(chat)


def _shape_or_none(chat: ChatRequest) -> tuple[Any, ...] | None:
    """None: there is a list or an object among the fields."""
    shape: tuple[Any, ...] = _shape_of(chat)
    try:
        hash(shape)
    except TypeError:
        return None
    return shape
