"""A Responses request as the chat request it stands for: items become messages, fields become a chat's.

https://platform.openai.com/docs/api-reference/responses/create (2026-11). What is carried on from a previous response is its
items, never its instructions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import ChatRequest, Message, StreamOptions
from apiserver.schema.response_requests import ResponseRequest, TextConfig
from apiserver.schema.structured import JsonSchemaFormat, ResponseFormat
from apiserver.schema.tools import Tool, ToolChoice, named_choice, tool_of

Item = dict[str, Any]  # Any: JSON, here and below
COPIED = (
    "model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
    "stream", "priority", "cache_salt", "request_id", "chat_template_kwargs", "structured_outputs", "include_reasoning",
    "parallel_tool_calls",
)  # fmt: skip
FIELDS: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Fields of a chat request, as clients of this route know them."""
LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16  # pairs
MAX_METADATA_KEY, MAX_METADATA_VALUE = 64, 512  # characters


def items_of(request: ResponseRequest) -> list[Item]:
    """The request's own input: text is one message of the user's."""
    if isinstance(request.input, str):
        return [message_item("user", "input_text", request.input)]
    return request.input


def message_item(role: str, kind: str, text: str) -> Item:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def chat_request(request: ResponseRequest, previous: Sequence[Item]) -> ChatRequest:
    """`previous` are the items of the response this one goes on from. Raises InvalidRequest."""
    _check_metadata(request.metadata)
    items = items_of(request)
    if not items:
        raise InvalidRequest("input must not be empty", param="input")
    messages = _Messages()
    if request.instructions:
        messages.add(Message(role="system", content=request.instructions))
    for item in previous:
        messages.add_item("previous_response_id", item)
    for place, item in enumerate(items):
        messages.add_item(f"input[{place}]", item)
    is_continued = _is_unfinished(items[-1])
    chat = ChatRequest(
        messages=messages.finished(),
        add_generation_prompt=not is_continued,
        continue_final_message=is_continued,
        **{name: getattr(request, name) for name in COPIED},
    )
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise InvalidRequest("max_output_tokens must be at least 1", param="max_output_tokens")
    chat.max_tokens = request.max_output_tokens
    if request.stream:
        chat.stream_options = StreamOptions(include_usage=True)
    if request.include is not None and LOGPROBS in request.include:
        chat.logprobs, chat.top_logprobs = True, request.top_logprobs
    elif request.top_logprobs:
        raise InvalidRequest(f"top_logprobs needs {LOGPROBS!r} in include", param="top_logprobs")
    if request.reasoning is not None:
        chat.reasoning_effort = request.reasoning.effort
    chat.response_format = _response_format(request.text)
    if request.tools:
        chat.tools = [_tool(f"tools[{place}]", tool) for place, tool in enumerate(request.tools)]
    chat.tool_choice = _tool_choice(request.tool_choice)
    return chat


def _is_unfinished(item: Item) -> bool:
    """A message of the assistant's at the end that is not whole is gone on with, as in vLLM."""
    return item.get("role") == "assistant" and item.get("status") in ("in_progress", "incomplete")


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Messages:
    """Items in, messages out: reasoning, text and calls that follow one another are one message of the assistant's."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._open: Message | None = None  # the assistant's, while more may belong to it

    def finished(self) -> list[Message]:
        self._close()
        return self._messages

    def add(self, message: Message) -> None:
        self._close()
        self._messages.append(message)

    def add_item(self, path: str, item: Item) -> None:
        """Raises InvalidRequest."""
        match item.get("type", "message"):
            case "message":
                self._add_message(path, item)
            case "function_call":
                self._add_call(path, item)
            case "function_call_output":
                output = _text(f"{path}.output", item.get("output"), ("input_text", "output_text"))
                self.add(Message(role="tool", content=output, tool_call_id=_string(path, item, "call_id")))
            case "reasoning":
                self._close()
                self._open = Message(role="assistant", reasoning_content=_reasoning(path, item))
            case kind:
                raise InvalidRequest(f"{path}: an item of type {kind!r} is not supported", param=path)

    def _add_message(self, path: str, item: Item) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise InvalidRequest(f"{path}.role: {role!r} is no role", param=f"{path}.role")
        text = _text(f"{path}.content", item.get("content"), ("input_text", "output_text", "text", "refusal"))
        if role != "assistant":
            self.add(Message(role=role, content=text))
            return
        if self._open is None or self._open.content is not None or self._open.tool_calls:
            self._close()
            self._open = Message(role="assistant")
        self._open.content = text

    def _add_call(self, path: str, item: Item) -> None:
        if self._open is None:
            self._open = Message(role="assistant")
        function = {"name": _string(path, item, "name"), "arguments": _string(path, item, "arguments")}
        call = {"id": _string(path, item, "call_id"), "type": "function", "function": function}
        self._open.tool_calls = [*(self._open.tool_calls or []), call]

    def _close(self) -> None:
        message, self._open = self._open, None
        if message is not None:
            message.content = message.content or ""
            self._messages.append(message)


def _text(path: str, content: object, kinds: tuple[str, ...]) -> str:
    """Of a string, or of a list of parts of these kinds."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{path} must be a text or a list of parts", param=path)
    return "\n".join(_part_text(f"{path}[{place}]", part, kinds) for place, part in enumerate(content))


def _part_text(path: str, part: object, kinds: tuple[str, ...]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in kinds:
        raise InvalidRequest(f"{path}: content of type {kind!r} is not supported", param=path)
    assert isinstance(part, dict)
    return _string(path, part, "refusal" if kind == "refusal" else "text")


def _reasoning(path: str, item: Item) -> str | None:
    """The thoughts themselves, or where there are none a summary of them. Encrypted ones can be read by nobody here."""
    for name, kind in (("content", "reasoning_text"), ("summary", "summary_text")):
        if item.get(name):
            return _text(f"{path}.{name}", item[name], (kind,))
    return None


def _string(path: str, item: Item, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{path}.{name} must be a string", param=f"{path}.{name}")
    return value


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_metadata(metadata: dict[str, str] | None) -> None:
    for key, value in (metadata or {}).items():
        if len(metadata or {}) > MAX_METADATA or len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise InvalidRequest(
                f"metadata must have at most {MAX_METADATA} pairs of {MAX_METADATA_KEY} and {MAX_METADATA_VALUE} characters",
                param="metadata",
            )


def _response_format(text: TextConfig | None) -> ResponseFormat | None:
    form = text.format if text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return ResponseFormat(type="json_object")
    if form.schema is None:
        raise InvalidRequest("text.format.schema is missing", param="text.format.schema")
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(name=form.name or "", schema=form.schema))


def _tool(path: str, tool: dict[str, Any]) -> Tool:
    kind = tool.get("type")
    if kind != "function":
        raise InvalidRequest(f"{path}: a tool of type {kind!r} is not supported, only functions", param=path)
    names = ("name", "description", "parameters", "strict")
    return tool_of(path, {name: tool[name] for name in names if tool.get(name) is not None})


def _tool_choice(choice: str | dict[str, Any] | None) -> ToolChoice | None:
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case str():
            raise InvalidRequest(f"tool_choice: {choice!r} is none of none, auto and required", param="tool_choice")
    if choice.get("type") != "function":
        param = "tool_choice.type"
        raise InvalidRequest(f"{param}: {choice.get('type')!r} is not supported, only 'function'", param=param)
    return named_choice(_string("tool_choice", choice, "name"))
