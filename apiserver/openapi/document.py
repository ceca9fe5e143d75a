"""The OpenAPI 3.1 document of the routes: paths from the router, bodies from the structs, words from `operations`.

A field that is known and refused is described by the values that are accepted: those that ask for nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from starlette.routing import Route

from apiserver.anthropic.errors import is_anthropic
from apiserver.middleware import OPEN
from apiserver.openapi.operations import OPERATIONS, Operation
from apiserver.schema.unsupported import TABLES

_REF = "#/components/schemas/{name}"
_BEARER = "apiKey"
_WORDS = {
    200: "Done",
    400: "The request is refused; the message names the field",
    401: "The API key is missing or wrong",
    404: "There is no such thing",
    413: "The body is too large",
    429: "This key's limit is reached; Retry-After says when to come back",
    500: "The engine failed",
    503: "Overloaded, or not ready; Retry-After says when to come back",
    529: "Overloaded; Retry-After says when to come back",
}

Json = dict[str, Any]  # Any: JSON, as everywhere here


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct):
    """OpenAI's error object."""

    error: ErrorDetail


class AnthropicErrorDetail(Struct):
    type: str
    message: str


class AnthropicErrorResponse(Struct):
    """Anthropic's error object."""

    type: str
    error: AnthropicErrorDetail
    request_id: str


class UndocumentedRoutes(LookupError):
    """Routes that apiserver.openapi.operations does not describe."""


def document(routes: Iterable[Route], *, title: str, version: str, has_keys: bool) -> Json:
    """Raises UndocumentedRoutes."""
    documented = list(_documented(routes))
    bodies = [operation.body for _, _, operation in documented if operation.body is not None]
    schemas = _schemas([*dict.fromkeys(bodies), ErrorResponse, AnthropicErrorResponse])
    paths: dict[str, Json] = {}
    for method, path, operation in documented:
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation, has_keys)
    components: Json = {"schemas": schemas}
    if has_keys:
        components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": components,
    }


def _documented(routes: Iterable[Route]) -> Iterable[tuple[str, str, Operation]]:
    missing = []
    for route in routes:
        for method in sorted(route.methods or ()):
            operation = OPERATIONS.get((method, route.path_format))
            if operation is not None:
                yield method, route.path_format, operation
            elif method != "HEAD":  # which Starlette adds to every GET
                missing.append(f"{method} {route.path_format}")
    if missing:
        raise UndocumentedRoutes(f"add to apiserver/openapi/operations.py: {', '.join(missing)}")


def _schemas(bodies: list[type[Struct]]) -> Mapping[str, Json]:
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REF)
    for kind, table in TABLES.items():
        properties = schemas.get(kind.__name__, {}).get("properties", {})
        for field, accepted in table.items():
            if field in properties:
                values = list(dict.fromkeys(map(_frozen, (None, *accepted))))
                properties[field] = {
                    "description": "Not served: refused, but for what asks for nothing.",
                    "enum": [msgspec.json.decode(value) for value in values],
                }
    return schemas


def _frozen(value: object) -> bytes:
    return msgspec.json.encode(value)


def _operation(method: str, path: str, operation: Operation, has_keys: bool) -> Json:
    is_guarded = path not in OPEN
    content: Json = {
        "operationId": f"{method.lower()}_{path.strip('/').translate(str.maketrans('/{}.', '____')) or 'page'}",
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": _responses(path, operation, is_guarded=is_guarded and has_keys),
    }
    if operation.body is not None:
        schema = {"$ref": _REF.format(name=operation.body.__name__)}
        content["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        content["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if is_guarded and has_keys:
        content["security"] = [{_BEARER: []}]
    return content


def _responses(path: str, operation: Operation, *, is_guarded: bool) -> Json:
    responses: Json = {}
    if operation.answers:
        responses["200"] = {"description": _WORDS[200], "content": {kind: {} for kind in operation.answers}}
    statuses = set(operation.may_fail_as)
    if is_guarded:
        statuses |= {401, 429}
    if operation.body is not None:
        statuses |= {400, 404, 413}
    if "text/event-stream" in operation.answers:
        statuses |= {429, 500, 529 if is_anthropic(path) else 503}
    if not operation.answers:
        statuses.add(400)
    error = AnthropicErrorResponse if is_anthropic(path) else ErrorResponse
    for status in sorted(statuses):
        schema = {} if operation.tag == "probes" else {"schema": {"$ref": _REF.format(name=error.__name__)}}
        responses[str(status)] = {"description": _WORDS[status], "content": {"application/json": schema}}
    return responses
