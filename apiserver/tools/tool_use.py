"""What one request may do with its tools, once that is known to make sense."""

from msgspec import Struct

from apiserver.errors import InvalidRequest
from apiserver.schema.requests import ChatRequest
from apiserver.schema.tools import Tool
from apiserver.tools.call_parser import ParameterSchemas

MAX_NAME_CHARS = 256


class ToolUse(Struct, frozen=True):
    """The model decides whether it calls, and what."""

    tools: tuple[Tool, ...]
    is_parallel: bool = True  # it may make several calls in one answer

    @property
    def schemas(self) -> ParameterSchemas:
        return {tool.function.name: tool.function.parameters for tool in self.tools}


def tool_use_or_none(request: ChatRequest) -> ToolUse | None:
    """Of tools that are checked; None: no calls are looked for. Raises InvalidRequest; rules as vLLM's."""
    choice, tools = request.tool_choice, request.tools
    if tools is None:
        if choice not in (None, "none"):
            raise InvalidRequest("when using `tool_choice`, `tools` must be set", param="tool_choice")
        return None
    if choice == "none":
        return None
    if choice is not None and choice != "auto":
        raise InvalidRequest("tool_choice: only 'auto' and 'none' are supported by this server", param="tool_choice")
    is_parallel = request.parallel_tool_calls is not False
    return ToolUse(tuple(tools), is_parallel)


def check_tools(tools: list[Tool] | None) -> None:
    """Raises InvalidRequest with the path of what is wrong."""
    if tools is None:
        return
    if not tools:
        raise InvalidRequest("tools must not be empty: leave it out instead", param="tools")
    names: set[str] = set()
    for place, tool in enumerate(tools):
        path = f"tools[{place}].function"
        name = tool.function.name
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            raise InvalidRequest(f"{path}.name must have 1 to {MAX_NAME_CHARS} characters", param=f"{path}.name")
        if name in names:
            raise InvalidRequest(f"{path}.name: there is already a tool called {name!r}", param=f"{path}.name")
        names.add(name)
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"{path}.parameters must be a schema of type 'object', not {kind!r}", param=f"{path}.parameters"
            )
