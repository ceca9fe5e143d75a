"""The response object of one request, from `in_progress` to its end. All dicts here are JSON."""

import time
from typing import Any

import msgspec

from apiserver.generation import GenerationRequest, Usage
from apiserver.schema.response_requests import ResponseRequest

ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "previous_response_id", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "user", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class ResponseObject:
    """What stays the same of it, and the form of what changes."""

    def __init__(
        self, response_id: str, model: str, request: ResponseRequest, generation: GenerationRequest, *, is_stored: bool
    ) -> None:
        sampling, text, reasoning = generation.sampling, request.text, request.reasoning
        form = text.format if text is not None else None
        self._fields: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            **{name: getattr(request, name) for name in ECHOED},
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "prompt": None,
            "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": None},
            "service_tier": request.service_tier or "auto",
            "store": is_stored,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"} if form is None else _without_nulls(form), "verbosity": "medium"},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": request.truncation or "disabled",
        }

    def in_progress(self) -> dict[str, Any]:
        return self._form("in_progress", [])

    def ended(self, output: list[dict[str, Any]], usage: Usage, *, is_incomplete: bool) -> dict[str, Any]:
        """`incomplete` when the tokens it was allowed were used up."""
        response = self._form("incomplete" if is_incomplete else "completed", output)
        if is_incomplete:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        response["usage"] = usage_object(usage)
        return response

    def failed(self, output: list[dict[str, Any]], message: str) -> dict[str, Any]:
        return {**self._form("failed", output), "error": {"code": "server_error", "message": message}}

    def _form(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._fields,
            "status": status,
            "output": output,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _without_nulls(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if value is not None}
