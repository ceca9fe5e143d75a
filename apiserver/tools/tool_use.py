"""What one request may do with its tools, once that is known to make sense."""

from enum import Enum, auto
from typing import Any

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import ChatRequest
from apiserver.schema.tools import NamedToolChoice, Tool
from apiserver.tools.call_parser import ParameterSchemas
from ipc.grammar import Grammar, fault_of

MAX_NAME_CHARS = 256
DEFINITIONS = ("$defs", "definitions")

Schema = dict[str, Any]  # Any: a JSON schema


class Choice(Enum):
    AUTO = auto()  # the model decides whether it calls, and what
    REQUIRED = auto()  # at least one call, and nothing else
    NAMED = auto()  # the arguments of one call of one tool, and nothing else


class ToolUse(Struct, frozen=True):
    choice: Choice
    tools: tuple[Tool, ...]  # with Choice.NAMED the one
    is_parallel: bool = True  # there may be several calls in one answer

    @property
    def name(self) -> str:
        """Of the first tool."""
        return self.tools[0].function.name

    @property
    def schemas(self) -> ParameterSchemas:
        """Of several tools of one name the first one's, as in vLLM."""
        return {tool.function.name: tool.function.parameters for tool in reversed(self.tools)}

    def grammar_or_none(self) -> Grammar | None:
        """What the answer is held to; None where it may be anything. Raises InvalidRequest."""
        if self.choice is Choice.AUTO:
            return None
        schema = _parameters(self.tools[0]) if self.choice is Choice.NAMED else self._list_of_calls()
        grammar = Grammar("json_schema", msgspec.json.encode(schema).decode())
        fault = fault_of(grammar)
        if fault is not None:
            raise InvalidRequest(f"tools: no answer can be held to their parameters: {fault}", param="tools")
        return grammar

    def _list_of_calls(self) -> Schema:
        """In vLLM's form."""
        calls: Schema = {"type": "array", "minItems": 1, "items": {"anyOf": [_call(tool) for tool in self.tools]}}
        if not self.is_parallel:
            calls["maxItems"] = 1
        return {**calls, **_definitions(self.tools)}


def asks_for_calls(request: ChatRequest) -> bool:
    """At least one, of a form that a grammar enforces."""
    return request.tool_choice not in (None, "none", "auto")


def tool_use_or_none(request: ChatRequest) -> ToolUse | None:
    """Of tools that are checked; None: no calls are looked for. Raises InvalidRequest; rules as vLLM's."""
    choice, tools = request.tool_choice, request.tools
    if tools is None:
        if choice not in (None, "none"):
            raise InvalidRequest("when using `tool_choice`, `tools` must be set", param="tool_choice")
        return None
    if choice == "none":
        return None
    is_parallel = request.parallel_tool_calls is not False
    if isinstance(choice, NamedToolChoice):
        return ToolUse(Choice.NAMED, (_named(choice.function.name, tools),), is_parallel)
    return ToolUse(Choice.REQUIRED if choice == "required" else Choice.AUTO, tuple(tools), is_parallel)


def check_tools(tools: list[Tool] | None) -> None:
    """Raises InvalidRequest with the path of what is wrong."""
    if tools is None:
        return
    if not tools:
        raise InvalidRequest("tools must not be empty: leave it out instead", param="tools")
    for place, tool in enumerate(tools):
        path = f"tools[{place}].function"
        name = tool.function.name
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            raise InvalidRequest(f"{path}.name must have 1 to {MAX_NAME_CHARS} characters", param=f"{path}.name")
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"{path}.parameters must be a schema of type 'object', not {kind!r}", param=f"{path}.parameters"
            )


def _named(name: str, tools: list[Tool]) -> Tool:
    for tool in tools:
        if tool.function.name == name:
            return tool
    raise InvalidRequest(f"tool_choice: there is no tool called {name!r} in `tools`", param="tool_choice.function.name")


def _parameters(tool: Tool) -> Schema:
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _call(tool: Tool) -> Schema:
    """Definitions are left to the root of the schema, where references look for them."""
    parameters = {key: value for key, value in _parameters(tool).items() if key not in DEFINITIONS}
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [tool.function.name]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _definitions(tools: tuple[Tool, ...]) -> Schema:
    """Of all tools together, by the word that each uses for them."""
    found: dict[str, Schema] = {}
    for place, tool in enumerate(tools):
        for word in DEFINITIONS:
            path = f"tools[{place}].function.parameters.{word}"
            definitions = _parameters(tool).get(word, {})
            if not isinstance(definitions, dict):
                raise InvalidRequest(f"{path} must be an object", param=path)
            for name, schema in definitions.items():
                if found.setdefault(word, {}).setdefault(name, schema) != schema:
                    raise InvalidRequest(f"{path}: another tool defines {name!r} otherwise", param=path)
    return dict(found)
