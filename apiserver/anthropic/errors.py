"""Errors of the Messages routes in Anthropic's shape: {"type": "error", "error": {"type", "message"}, "request_id"}.

Statuses and types: https://platform.claude.com/docs/en/api/errors (2026-11). A server that is full answers 529 there, not
503: it is what Anthropic's clients wait and try again on. Retry-After stays.
"""

from collections.abc import Mapping

import msgspec

from apiserver.errors import ApiError

PREFIX = "/v1/messages"
OVERLOADED = 529
TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_anthropic(path: str) -> bool:
    return path == PREFIX or path.startswith(PREFIX + "/")


class AnthropicError(ApiError):
    """Another error, as these routes tell it."""

    def __init__(self, error: ApiError, request_id: str) -> None:
        super().__init__(error.message, param=error.param)
        self.type = TYPES.get(error.status, "api_error")
        self.status = OVERLOADED if error.status == 503 else error.status
        self._headers, self._request_id = error.headers, request_id

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._headers

    def body(self) -> bytes:
        content = {"type": self.type, "message": self.message}
        return msgspec.json.encode({"type": "error", "error": content, "request_id": self._request_id})
