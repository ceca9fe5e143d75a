"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

import time
import uuid
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from apiserver.asgi import read_body
from apiserver.errors import InvalidRequest
from apiserver.generation import Prompt
from apiserver.prompt_encoding import encode_prompt
from apiserver.routes.generate import answer, check_model, deadline_of
from apiserver.schema.requests import ChatRequest, Message, TokenizeRequest, decode_chat
from apiserver.schema.responses import ChatEvents, chat_body
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.schema.validate import generation_request
from apiserver.services import Services


class ChatCompletions:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        body = await read_body(scope, receive, services.settings.server.max_body_bytes)
        request = decode_chat(body)
        model = check_model(request.model, services)
        refuse_unsupported(request)
        started_s = time.monotonic()
        text = render_chat(request, services)
        ids = await encode_prompt(
            services.preloaded.tokenizer, text, add_special_tokens=bool(request.add_special_tokens)
        )
        services.metrics.tokenize.observe(time.monotonic() - started_s)
        generation = generation_request(
            request,
            (Prompt(ids),),
            services.model,
            services.settings.server,
            request_id=scope["state"]["request_id"],
            deadline_s=deadline_of(scope),
        )
        response_id = f"chatcmpl-{uuid.uuid4().hex}"
        events = ChatEvents(response_id, model)
        await answer(
            generation, services, scope, receive, send,
            response_id=response_id, model=model, events=events, body=chat_body,
        )  # fmt: skip


def render_chat(request: ChatRequest | TokenizeRequest, services: Services) -> str:
    """The prompt text of a chat. Raises InvalidRequest."""
    template = services.preloaded.chat_template
    if template is None:
        raise InvalidRequest("this model has no chat template: use /v1/completions, or serve it with --chat-template")
    if not request.messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    if request.continue_final_message and request.add_generation_prompt and isinstance(request, ChatRequest):
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt to be false", param="continue_final_message"
        )
    messages = [_message(number, message) for number, message in enumerate(request.messages)]
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    documents = None
    if isinstance(request, ChatRequest):
        documents = request.documents
        if request.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", request.reasoning_effort)
    return template.render(
        messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        documents=documents,
        variables=variables,
    )


def _message(number: int, message: Message) -> dict[str, Any]:
    """As templates know it: absent fields absent, content as text."""
    fields: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(message).items() if value is not None
    }
    if isinstance(message.content, list):
        fields["content"] = "\n".join(_text_of(number, place, part) for place, part in enumerate(message.content))
    elif message.content is None:
        if message.role != "assistant":
            raise InvalidRequest(f"messages[{number}].content is missing", param=f"messages[{number}].content")
        fields["content"] = ""
    return fields


def _text_of(number: int, place: int, part: dict[str, Any]) -> str:
    param = f"messages[{number}].content[{place}]"
    kind = part.get("type")
    if kind != "text":
        raise InvalidRequest(f"{param}: content of type '{kind}' is not supported, only text", param=param)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{param}.text must be a string", param=f"{param}.text")
    return text
