"""What happens around every request: its id, the key check, one log line, one metric, and errors in the shape of its API.

One pure ASGI layer, because each layer costs every request and every event of a stream.
"""

import logging
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apiserver.anthropic.errors import AnthropicError, is_anthropic
from apiserver.asgi import ClientLeft, header, refuse_body, send_error
from apiserver.errors import ApiError, BodyTooLarge, GenerationFailed, Unauthorized
from apiserver.keyring import Holder, Keyring
from apiserver.metrics import WorkerMetrics
from apiserver.request_log import is_shown, log_request
from config.api_keys import digest_of

if TYPE_CHECKING:  # imported only where tracing is on
    from apiserver.tracing import RequestTracer

logger = logging.getLogger(__name__)

MAX_REQUEST_ID_CHARS = 128
QUIET = frozenset({"/health", "/livez", "/readyz", "/startupz", "/metrics", "/ping"})  # probes: logged at debug level
UNCOUNTED = QUIET | {"/load", "/version"}  # in the HTTP metrics, as in vLLM
OPEN = UNCOUNTED | {
    "/",
    "/docs",
    "/openapi.json",
}  # whatever else there is, and is not, asks for a key where there is one
CLIENT_CLOSED = 499  # nginx's code for a client that left; only in the log and the metrics


class RequestMiddleware:
    """`scope["state"]` gets `request_id`, `log`, a dict whose entries end up in the request's log line, and with several API
    keys `fair_key`, which of them it was; where there are keys, `key_digest`, the SHA-256 of the one that was given.
    Routes that generate leave `describe` there, which gives more entries: asked only where somebody wants to know."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: WorkerMetrics,
        keyring: Keyring,
        paths: frozenset[str],
        tracer: "RequestTracer | None" = None,
    ) -> None:
        self._app, self._metrics, self._paths, self._tracer = app, metrics, paths, tracer
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started_s = time.monotonic()
        request_id = _request_id(scope)
        id_headers = [(name, request_id.encode()) for name in _id_header_names(scope["path"])]
        log: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "started_s": started_s, "log": log}
        holder: Holder | None = None  # of a limited key, once its request is counted
        status = response_bytes = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, response_bytes
            if message["type"] == "http.response.start":
                status, response_bytes = message["status"], _declared_bytes(message["headers"])
                message["headers"] = [*message["headers"], *id_headers]
            await send(message)

        try:
            try:
                if self._keyring:
                    found = self._check_key(scope)
                    if found is not None and found.is_limited and scope["method"] == "POST":
                        id_headers += self._keyring.begin(found)
                        holder = found
                await self._app(scope, receive, send_with_id)
            except BodyTooLarge as error:
                log["error"] = type(error).__name__
                await refuse_body(receive, send_with_id, _in_form_of(scope, error))
            except ApiError as error:
                log["error"] = error.message if error.status >= 500 else type(error).__name__
                await send_error(send_with_id, _in_form_of(scope, error))
        except ClientLeft:
            status = CLIENT_CLOSED
        except Exception:
            logger.exception("request crashed", extra={"request_id": request_id, "path": scope["path"]})
            if status:
                raise  # the response has begun: the server closes the connection
            await send_error(send_with_id, _in_form_of(scope, GenerationFailed("internal error")))
        finally:
            if holder is not None:
                answer = _described(scope)
                self._keyring.end(holder, answer.get("prompt_tokens", 0) + answer.get("completion_tokens", 0))
            self._report(scope, request_id, status or CLIENT_CLOSED, time.monotonic() - started_s, response_bytes, log)

    def _check_key(self, scope: Scope) -> Holder | None:
        """Whose request it is; None: the path is open to all. Raises Unauthorized."""
        if scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return None
        scheme, _, key = (header(scope, b"authorization") or b"").partition(b" ")
        if not scheme and is_anthropic(scope["path"]):
            scheme, key = b"bearer", header(scope, b"x-api-key") or b""
        digest = digest_of(key.strip())
        holder = self._keyring.holder_or_none(digest)
        if scheme.lower() != b"bearer" or holder is None:
            raise Unauthorized("Incorrect or missing API key: send it as 'Authorization: Bearer KEY'.")
        state = scope["state"]
        state["key_digest"] = digest
        if self._keyring.has_several:
            state["fair_key"] = holder.number
            state["log"]["api_key"] = holder.key.name
        return holder

    def _report(
        self,
        scope: Scope,
        request_id: str,
        status: int,
        duration_s: float,
        response_bytes: int,
        log: dict[str, Any],
    ) -> None:
        path = scope["path"]
        if path not in UNCOUNTED:
            handler = path if path in self._paths else "other"
            request_bytes = _declared_bytes(scope["headers"])
            self._metrics.on_http(scope["method"], handler, status, duration_s, request_bytes, response_bytes)
        level = logging.DEBUG if path in QUIET else logging.INFO
        state = scope["state"]
        is_slow = duration_s > self._metrics.slow.floor_s and "describe" in state  # the first of a minute are slow, too
        is_traced = self._tracer is not None and path not in UNCOUNTED
        if not is_slow and not is_traced and not is_shown(level):
            return
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "path": path,
            "status": status,
            "duration_ms": round(duration_s * 1e3, 1),
            **log,
            **_described(scope),
        }
        if is_slow:
            self._metrics.slow.offer(duration_s, fields)
        if self._tracer is not None and is_traced:
            self._tracer.record(scope["headers"], fields, state.get("generation"))
        if is_shown(level):
            log_request(level, fields)


def _described(scope: Scope) -> dict[str, Any]:
    """Of an answer that was generated, as far as it went; of any other nothing."""
    describe = scope["state"].get("describe")
    fields: dict[str, Any] = {} if describe is None else describe()
    return fields


def _id_header_names(path: str) -> tuple[bytes, ...]:
    """Anthropic's clients look for theirs."""
    return (b"x-request-id", b"request-id") if is_anthropic(path) else (b"x-request-id",)


def _in_form_of(scope: Scope, error: ApiError) -> ApiError:
    """Errors look as clients of the route expect them."""
    return AnthropicError(error, scope["state"]["request_id"]) if is_anthropic(scope["path"]) else error


def _declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Content-Length, 0 when there is none."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id when it is short and printable, else a new one."""
    given = header(scope, b"x-request-id")
    if given is not None and len(given) <= MAX_REQUEST_ID_CHARS:
        text = given.decode("latin-1")
        if text.isascii() and text.isprintable() and text:
            return text
    return f"{random.getrandbits(128):032x}"  # unique, not secret; Python seeds it anew in every forked process
