"""A request's messages as chat templates know them: plain dicts, absent fields absent, content as text."""

from typing import Any

import msgspec

from apiserver.chat_template import RESERVED, ChatTemplate
from apiserver.errors import InvalidRequest
from apiserver.schema.requests import ChatRequest, Message, TokenizeRequest
from apiserver.schema.unsupported import refuse_unsupported
from apiserver.tools.tool_use import check_tools

COPIED = ("name", "tool_call_id", "reasoning", "reasoning_content")


def render_chat(request: ChatRequest | TokenizeRequest, template: ChatTemplate | None) -> str:
    """The prompt text of a chat. Raises InvalidRequest."""
    if template is None:
        raise InvalidRequest("this model has no chat template: use /v1/completions, or serve it with --chat-template")
    if not request.messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    check_tools(request.tools)
    add_generation_prompt = request.add_generation_prompt is not False
    if request.continue_final_message and add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt to be false", param="continue_final_message"
        )
    messages = [_plain(number, message, template.takes_parts) for number, message in enumerate(request.messages)]
    if not template.knows_developer and any(message.role == "developer" for message in request.messages):
        messages = _with_one_system_message(messages)
    return template.render(
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        tools=None if request.tools is None else [tool.plain() for tool in request.tools],
        documents=_documents(request, template),
        variables=template_variables(request),
    )


def num_pieces(request: ChatRequest | TokenizeRequest) -> int:
    """How much a template has to go through, whatever it makes of it: messages, their parts and calls, and each 256 characters
    of calls' arguments, tools, documents and variables."""
    messages = request.messages or ()
    num = len(messages)
    for message in messages:
        if isinstance(message.content, list):
            num += len(message.content)
        if message.tool_calls:
            num += len(message.tool_calls) + _length_of(message.tool_calls)
    if request.tools:
        num += _length_of(request.tools)
    if request.chat_template_kwargs:
        num += _length_of(request.chat_template_kwargs)
    if isinstance(request, ChatRequest) and request.documents:
        num += _length_of(request.documents)
    return num


def _length_of(value: object) -> int:
    return len(msgspec.json.encode(value)) // 256


def _plain(number: int, message: Message, takes_parts: bool) -> dict[str, Any]:  # Any: JSON, here and below
    path = f"messages[{number}]"
    refuse_unsupported(message, path + ".")
    fields: dict[str, Any] = {"role": message.role, "content": _content(path, message, takes_parts)}
    for name in COPIED:
        value = getattr(message, name)
        if value is not None:
            fields[name] = value
    if message.tool_calls:
        fields["tool_calls"] = [
            _tool_call(f"{path}.tool_calls[{place}]", call) for place, call in enumerate(message.tool_calls)
        ]
    return fields


def _with_one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a template that knows no developers: what they and the system say stands first, as one message, as in vLLM."""
    others = [message for message in messages if message["role"] not in ("system", "developer")]
    texts = [_joined(message["content"]) for message in messages if message["role"] in ("system", "developer")]
    if len(texts) == 1 and messages[0]["role"] == "developer":
        return [{**messages[0], "role": "system"}, *others]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *others]


def _joined(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join([part["text"] for part in content])


def _content(path: str, message: Message, takes_parts: bool) -> str | list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:  # of a call of tools, and as in vLLM of whoever says nothing
        return ""
    texts = [_text_of(f"{path}.content[{place}]", part) for place, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if takes_parts else "\n".join(texts)


def _text_of(path: str, part: dict[str, Any]) -> str:
    kind = part.get("type")
    if kind != "text":
        raise InvalidRequest(f"{path}: content of type {kind!r} is not supported, only 'text'", param=path)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.text must be a string", param=f"{path}.text")
    return text


def _tool_call(path: str, call: dict[str, Any]) -> dict[str, Any]:
    """Templates want arguments as an object; clients send it as JSON inside a string."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{path}.function needs a name", param=f"{path}.function")
    return {**call, "function": {**function, "arguments": _arguments(path, function.get("arguments"))}}


def _arguments(path: str, arguments: object) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except (msgspec.DecodeError, RecursionError):
        content = None
    if not isinstance(content, dict):
        param = f"{path}.function.arguments"
        raise InvalidRequest(f"{param} must be a JSON object", param=param)
    return content


def _documents(request: ChatRequest | TokenizeRequest, template: ChatTemplate) -> list[dict[str, Any]] | None:
    if isinstance(request, TokenizeRequest) or request.documents is None:
        return None
    if not template.takes_documents:
        raise InvalidRequest("documents: this model's chat template takes none", param="documents")
    return request.documents


def template_variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """What the template may read beyond the messages. As in vLLM, an effort of reasoning also switches thinking."""
    variables = dict(request.chat_template_kwargs or {})
    for name in RESERVED & variables.keys():
        raise InvalidRequest(
            f"chat_template_kwargs.{name}: has a field of its own or is not supported",
            param=f"chat_template_kwargs.{name}",
        )
    if isinstance(request, ChatRequest) and request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
        variables.setdefault("enable_thinking", request.reasoning_effort != "none")
    return variables
