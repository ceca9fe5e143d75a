"""What /openapi.json says of each route beyond its path: a line of text, the struct of its body, how it answers.

A route of apiserver.app that has no entry here fails `tests/unit/apiserver/test_openapi.py`, which names it.
"""

from collections.abc import Mapping

from msgspec import Struct

from apiserver.schema.embeddings import EmbeddingRequest
from apiserver.schema.messages import CountTokensRequest, MessagesRequest
from apiserver.schema.operator_requests import AbortRequest, StartProfileRequest
from apiserver.schema.requests import (
    BatchChatRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from apiserver.schema.response_requests import ResponseRequest
from apiserver.schema.token_requests import GenerateRequest

HTML, JSON, EVENTS, METRICS = "text/html", "application/json", "text/event-stream", "text/plain"


class Operation(Struct, frozen=True):
    """One method of one path."""

    tag: str
    summary: str
    body: type[Struct] | None = None
    answers: tuple[str, ...] = (JSON,)  # content types of a 200
    may_fail_as: tuple[int, ...] = ()  # statuses beyond those that any route of its kind may give


_GENERATES = (JSON, EVENTS)
_PROBE = (503,)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation("OpenAI", "Continue a chat", ChatRequest, _GENERATES),
    ("POST", "/v1/chat/completions/batch"): Operation("OpenAI", "Continue several chats", BatchChatRequest),
    ("POST", "/v1/completions"): Operation("OpenAI", "Continue texts or token ids", CompletionRequest, _GENERATES),
    ("POST", "/v1/embeddings"): Operation("OpenAI", "Vectors of texts", EmbeddingRequest),
    ("POST", "/v1/responses"): Operation("OpenAI", "Create a response", ResponseRequest, _GENERATES),
    ("GET", "/v1/responses/{response_id}"): Operation("OpenAI", "A stored response", may_fail_as=(404,)),
    ("DELETE", "/v1/responses/{response_id}"): Operation("OpenAI", "Forget a stored response", may_fail_as=(404,)),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation(
        "OpenAI", "Always refused: no response runs in the background", answers=(), may_fail_as=(404,)
    ),
    ("POST", "/invocations"): Operation(
        "OpenAI",
        "As the route whose body this is: a chat's, a completion's or an embedding's",
        None,
        _GENERATES,
        (400, 404, 413),
    ),
    ("GET", "/v1/models"): Operation("OpenAI", "The names this server answers to"),
    ("GET", "/v1/models/{name}"): Operation("OpenAI", "One of them", may_fail_as=(404,)),
    ("POST", "/v1/messages"): Operation("Anthropic", "Create a message", MessagesRequest, _GENERATES),
    ("POST", "/v1/messages/count_tokens"): Operation("Anthropic", "Count a conversation's tokens", CountTokensRequest),
    ("POST", "/v1/chat/completions/render"): Operation("tokens", "A chat as token ids, to be generated", ChatRequest),
    ("POST", "/v1/completions/render"): Operation("tokens", "Prompts as token ids, to be generated", CompletionRequest),
    ("POST", "/inference/v1/generate"): Operation(
        "tokens", "Continue token ids by token ids", GenerateRequest, _GENERATES
    ),
    ("POST", "/tokenize"): Operation("tokens", "Token ids of a text or a chat", TokenizeRequest),
    ("POST", "/detokenize"): Operation("tokens", "The text of token ids", DetokenizeRequest),
    ("POST", "/abort_requests"): Operation("operator", "End requests of any worker", AbortRequest, may_fail_as=_PROBE),
    ("POST", "/inference/v1/abort_requests"): Operation(
        "operator", "End these requests of any worker", AbortRequest, may_fail_as=_PROBE
    ),
    ("POST", "/reset_prefix_cache"): Operation("operator", "Forget the K/V of all prompts", may_fail_as=_PROBE),
    ("POST", "/sleep"): Operation("operator", "Engines vllm give their memory back", may_fail_as=(400, 503)),
    ("POST", "/wake_up"): Operation("operator", "Engines vllm take it again", may_fail_as=(400, 503)),
    ("GET", "/is_sleeping"): Operation("operator", "Does an engine vllm sleep?", may_fail_as=(400, 503)),
    ("POST", "/pause"): Operation("operator", "Engines vllm run nothing", may_fail_as=(400, 503)),
    ("POST", "/resume"): Operation("operator", "Engines vllm go on", may_fail_as=(400, 503)),
    ("GET", "/is_paused"): Operation("operator", "Does an engine vllm rest?", may_fail_as=(400, 503)),
    ("POST", "/release_kv_cache_memory"): Operation(
        "operator", "Paused engines vllm drop their K/V memory", may_fail_as=(400, 503)
    ),
    ("POST", "/start_profile"): Operation(
        "operator", "Profile the engines and the workers", StartProfileRequest, may_fail_as=_PROBE
    ),
    ("POST", "/stop_profile"): Operation("operator", "Write the profiles", may_fail_as=(400, 503)),
    ("GET", "/server_info"): Operation("facts", "The configuration, without secrets", may_fail_as=(400,)),
    ("GET", "/tokenizer_info"): Operation("facts", "The tokenizer's settings"),
    ("GET", "/health"): Operation("probes", "Would a request sent now be served?", may_fail_as=_PROBE),
    ("GET", "/ping"): Operation("probes", "As /health", may_fail_as=_PROBE),
    ("POST", "/ping"): Operation("probes", "As /health", may_fail_as=_PROBE),
    ("GET", "/readyz"): Operation("probes", "As /health", may_fail_as=_PROBE),
    ("GET", "/livez"): Operation("probes", "Does this worker's loop turn?", may_fail_as=_PROBE),
    ("GET", "/startupz"): Operation("probes", "Has some engine been ready?", may_fail_as=_PROBE),
    ("GET", "/version"): Operation("facts", "The server's version"),
    ("GET", "/load"): Operation("facts", "Choices in flight on the answering worker"),
    ("GET", "/metrics"): Operation("facts", "Prometheus metrics of the whole fleet", answers=(METRICS,)),
    ("GET", "/openapi.json"): Operation("facts", "This description"),
    ("GET", "/"): Operation("pages", "Chat with the model", answers=(HTML,)),
    ("GET", "/docs"): Operation("pages", "This description, to be read", answers=(HTML,)),
}
