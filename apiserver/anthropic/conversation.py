"""A Messages request as the chat request it stands for, so that both go the same way from here on.

Semantics: https://platform.claude.com/docs/en/api/messages (2026-11). What a model without them is not told: signatures of
thinking blocks, redacted thinking, citations. As in vLLM the block by which Claude Code bills its requests is dropped: it
differs each time, and would keep the prefix cache from ever holding the conversation behind it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from apiserver.errors import InvalidRequest
from apiserver.schema.messages import CountTokensRequest, MessagesRequest, ToolChoice, Turn
from apiserver.schema.requests import ChatRequest, Message, StreamOptions
from apiserver.schema.structured import JsonSchemaFormat, ResponseFormat
from apiserver.schema.tools import Tool, named_choice, tool_of
from apiserver.schema.tools import ToolChoice as ChatToolChoice

FIELDS: Mapping[str, str] = {
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
"""Fields of a chat request, as clients of these routes know them."""
BILLING = "x-anthropic-billing-header"


def chat_request(request: MessagesRequest) -> ChatRequest:
    """Raises InvalidRequest that names the field as the client knows it."""
    chat = counted_chat(request)
    chat.max_tokens = request.max_tokens
    chat.stop = request.stop_sequences
    chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    chat.cache_salt = request.cache_salt
    chat.stream = request.stream
    if request.stream:
        chat.stream_options = StreamOptions(include_usage=True)
    return chat


def counted_chat(request: MessagesRequest | CountTokensRequest) -> ChatRequest:
    """What makes the prompt. Raises InvalidRequest."""
    if not request.messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    messages = _system(request.system)
    for number, turn in enumerate(request.messages):
        messages += _turn(f"messages[{number}]", turn)
    is_continued = _is_prefill(request.messages[-1])
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        add_generation_prompt=not is_continued,
        continue_final_message=is_continued,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    _add_tools(chat, request)
    _add_thinking(chat, request)
    return chat


def merge_late_system(chat: ChatRequest) -> None:
    """For a template that takes system messages at the beginning only: the later ones are said there, as in vLLM."""
    texts = [message.content for message in chat.messages if message.role == "system"]
    others = [message for message in chat.messages if message.role != "system"]
    chat.messages = [Message(role="system", content="\n".join(str(text) for text in texts)), *others]


def _is_prefill(turn: Turn) -> bool:
    """Text of the assistant's at the end is the beginning of the answer."""
    return turn.role == "assistant" and (
        isinstance(turn.content, str) or all(block.get("type") == "text" for block in turn.content)
    )


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _system(system: str | list[dict[str, Any]] | None) -> list[Message]:  # Any: JSON, here and below
    if system is None:
        return []
    texts = [system] if isinstance(system, str) else _texts("system", system)
    content = "\n".join(text for text in texts if not text.startswith(BILLING))
    return [Message(role="system", content=content)] if content else []


def _turn(path: str, turn: Turn) -> list[Message]:
    """A user's tool results are messages of their own, in front of what the user says with them."""
    if isinstance(turn.content, str):
        return [Message(role=turn.role, content=turn.content)]
    if turn.role == "system":
        return _system(turn.content)
    if turn.role == "assistant":
        return [_assistant(path, turn.content)]
    messages: list[Message] = []
    texts: list[str] = []
    for place, block in enumerate(turn.content):
        here = f"{path}.content[{place}]"
        if block.get("type") == "tool_result":
            messages.append(_tool_result(here, block))
        else:
            texts.append(_text(here, block))
    if texts or not messages:
        messages.append(Message(role="user", content="\n".join(texts)))
    return messages


def _assistant(path: str, blocks: list[dict[str, Any]]) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        here = f"{path}.content[{place}]"
        match block.get("type"):
            case "tool_use":
                calls.append(_tool_use(here, block))
            case "thinking":
                thoughts.append(_string(here, block, "thinking"))
            case "redacted_thinking":
                pass  # only Anthropic can read it
            case _:
                texts.append(_text(here, block))
    return Message(
        role="assistant",
        content="\n".join(texts),
        reasoning_content="".join(thoughts) or None,
        tool_calls=calls or None,
    )


def _tool_use(path: str, block: dict[str, Any]) -> dict[str, Any]:
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{path}.input must be an object", param=f"{path}.input")
    function = {"name": _string(path, block, "name"), "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": _string(path, block, "id"), "type": "function", "function": function}


def _tool_result(path: str, block: dict[str, Any]) -> Message:
    content = block.get("content") or ""
    if not isinstance(content, str | list):
        raise InvalidRequest(f"{path}.content must be a text or a list of blocks", param=f"{path}.content")
    text = content if isinstance(content, str) else "\n".join(_texts(f"{path}.content", content))
    if block.get("is_error"):
        text = f"Error: {text}"  # chat templates have no other way to tell the model
    return Message(role="tool", content=text, tool_call_id=_string(path, block, "tool_use_id"))


def _texts(path: str, blocks: list[dict[str, Any]]) -> list[str]:
    return [_text(f"{path}[{place}]", block) for place, block in enumerate(blocks)]


def _text(path: str, block: object) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text":
        raise InvalidRequest(f"{path}: a block of type {kind!r} is not supported here", param=path)
    assert isinstance(block, dict)
    return _string(path, block, "text")


def _string(path: str, block: dict[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{path}.{name} must be a string", param=f"{path}.{name}")
    return value


# ── tools, thinking, output ──────────────────────────────────────────────────────────────────────────────────────────


def _add_tools(chat: ChatRequest, request: MessagesRequest | CountTokensRequest) -> None:
    if request.tools:
        chat.tools = [_tool(f"tools[{place}]", tool) for place, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is not None:
        chat.tool_choice = _tool_choice(choice)
        chat.parallel_tool_calls = not choice.disable_parallel_tool_use


def _tool(path: str, tool: dict[str, Any]) -> Tool:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidRequest(f"{path}: a tool of type {kind!r} is not supported, only the client's own", param=path)
    function = {"name": _string(path, tool, "name"), "parameters": tool.get("input_schema")}
    if not isinstance(function["parameters"], dict):
        raise InvalidRequest(f"{path}.input_schema must be an object", param=f"{path}.input_schema")
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return tool_of(path, function)


def _tool_choice(choice: ToolChoice) -> ChatToolChoice:
    if choice.type != "tool":
        return "required" if choice.type == "any" else choice.type
    if not choice.name:
        raise InvalidRequest("tool_choice.name is required when its type is 'tool'", param="tool_choice.name")
    return named_choice(choice.name)


def _add_thinking(chat: ChatRequest, request: MessagesRequest | CountTokensRequest) -> None:
    """As in vLLM: `disabled` is an effort of none, `adaptive` leaves it to the model, a format is a response format."""
    output, thinking = request.output_config, request.thinking
    if output is not None:
        chat.reasoning_effort = output.effort
        if output.format is not None:
            schema = JsonSchemaFormat(name="output", schema=output.format.schema)
            chat.response_format = ResponseFormat(type="json_schema", json_schema=schema)
    if thinking is None:
        return
    if thinking.type == "disabled":
        chat.reasoning_effort = "none"
    elif thinking.type == "enabled":
        if thinking.budget_tokens is None or thinking.budget_tokens < 1:
            raise InvalidRequest("thinking.budget_tokens must be at least 1", param="thinking.budget_tokens")
        chat.thinking_token_budget = thinking.budget_tokens
