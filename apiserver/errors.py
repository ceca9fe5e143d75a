"""What a client is told when a request cannot be served: OpenAI's error object, a status, a metric label.

    ApiError
    ├── InvalidRequest           400  type invalid_request_error, as all the client's errors
    │   ├── ContextTooLong       400  code context_length_exceeded
    │   └── PreviousResponseNotFound 400  code previous_response_not_found, as OpenAI has it
    ├── Unauthorized             401  code invalid_api_key
    ├── NotFound                 404  code unknown_url
    │   ├── ModelNotFound        404  code model_not_found
    │   └── ResponseNotFound     404  code response_not_found
    ├── MethodNotAllowed         405  code method_not_supported
    ├── BodyTooLarge             413  code body_too_large
    ├── GenerationFailed         500  type server_error
    └── Overloaded               503  type overloaded_error, with Retry-After
        └── QuotaExceeded        429  type rate_limit_error: this caller's share, not the server's capacity
            └── KeyLimitReached  429  code rate_limit_exceeded, with x-ratelimit headers: what its key may use

Shape, types and codes: OpenAI's (https://platform.openai.com/docs/guides/error-codes, 2026-11).
"""

import msgspec

MAX_MESSAGE_CHARS = 1000  # messages quote the request, and a request may be large


class ApiError(Exception):
    """Raised anywhere while a request is handled; answered in one place (apiserver.middleware)."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
        self.param = param

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return []

    def body(self) -> bytes:
        return error_body(self.message, type_=self.type, param=self.param, code=self.code)


class InvalidRequest(ApiError):
    status, type = 400, "invalid_request_error"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class PreviousResponseNotFound(InvalidRequest):
    code = "previous_response_not_found"


class Unauthorized(ApiError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class NotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "unknown_url"


class ModelNotFound(NotFound):
    code = "model_not_found"


class ResponseNotFound(NotFound):
    code = "response_not_found"


class MethodNotAllowed(ApiError):
    status, type, code = 405, "invalid_request_error", "method_not_supported"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self._allowed = allowed

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"allow", self._allowed.encode())]


class BodyTooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "body_too_large"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"connection", b"close")]  # the rest of the body is not wanted


class GenerationFailed(ApiError):
    """The engine took the request and could not finish it."""


class Overloaded(ApiError):
    """Refused before any work was done, or lost with its engine: the same request may be sent again."""

    status, type = 503, "overloaded_error"

    def __init__(self, message: str, *, retry_after_s: int, reason: str) -> None:
        super().__init__(message)
        self.retry_after_s, self.code = retry_after_s, reason

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", str(self.retry_after_s).encode())]


class QuotaExceeded(Overloaded):
    """The caller has its share already; others are still served."""

    status, type = 429, "rate_limit_error"


class KeyLimitReached(QuotaExceeded):
    """The key has used what --api-key-file gives it."""

    def __init__(self, message: str, *, retry_after_s: int, limit_headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason="rate_limit_exceeded")
        self._limit_headers = limit_headers

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers, *self._limit_headers]


def error_body(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> bytes:
    """One OpenAI error object."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
