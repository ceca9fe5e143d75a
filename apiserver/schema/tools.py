"""Tools as requests name them (https://platform.openai.com/docs/guides/function-calling, 2026-11)."""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from apiserver.errors import InvalidRequest


class ToolFunction(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None  # Any: a JSON schema
    strict: bool | None = None

    def plain(self) -> dict[str, Any]:
        """As templates are shown it; as in vLLM `strict` only where the client said it."""
        fields = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return fields if self.strict is None else {**fields, "strict": self.strict}


class Tool(Struct):
    function: ToolFunction
    type: Literal["function"] = "function"

    def plain(self) -> dict[str, Any]:
        return {"type": self.type, "function": self.function.plain()}


class NamedFunction(Struct):
    name: str


class NamedToolChoice(Struct):
    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


def tool_of(path: str, function: dict[str, Any]) -> Tool:
    """Of the fields of its function, as another API has them. Raises InvalidRequest."""
    try:
        return Tool(msgspec.convert(function, ToolFunction))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{path}: {error}", param=path) from None


def named_choice(name: str) -> NamedToolChoice:
    return NamedToolChoice(NamedFunction(name))
