"""What a client is told when a request cannot be served: OpenAI's error object, a status, a metric label.

    ApiError
    ├── InvalidRequest           400  invalid_request_error
    │   └── ContextTooLong       400  code context_length_exceeded
    ├── Unauthorized             401  authentication_error
    ├── NotFound                 404  not_found_error
    ├── MethodNotAllowed         405  invalid_request_error
    ├── BodyTooLarge             413  invalid_request_error
    ├── GenerationFailed         500  server_error
    └── Overloaded               503  overloaded_error, with Retry-After

Shape: https://platform.openai.com/docs/guides/error-codes (2026-11).
"""

import msgspec


class ApiError(Exception):
    """Raised anywhere while a request is handled; answered in one place (apiserver.asgi)."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return []

    def body(self) -> bytes:
        return error_body(self.message, type_=self.type, param=self.param, code=self.code)


class InvalidRequest(ApiError):
    status, type = 400, "invalid_request_error"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(ApiError):
    status, type, code = 401, "authentication_error", "invalid_api_key"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class NotFound(ApiError):
    status, type = 404, "not_found_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status, type = 405, "invalid_request_error"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self._allowed = allowed

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"allow", self._allowed.encode())]


class BodyTooLarge(ApiError):
    status, type = 413, "invalid_request_error"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"connection", b"close")]  # the rest of the body is not read


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


def error_body(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> bytes:
    """One OpenAI error object."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
