"""/openapi.json: every route, every struct, and schemas that take what clients really send; /docs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from apiserver.app import routes_of
from apiserver.openapi.document import UndocumentedRoutes, document
from apiserver.openapi.operations import OPERATIONS
from apiserver.schema.unsupported import TABLES
from config.settings import EngineSettings, ServerSettings
from tests.unit.apiserver.worker_rig import WorkerRig, make_model_folder

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "stop": ["a", "b"]}),
    ("/v1/chat/completions", {**CHAT, "n": 2, "seed": 1, "temperature": 0.5, "logprobs": True, "top_logprobs": 3}),
    ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "none", "metadata": {"a": "b"}, "user": "u"}),
    ("/v1/chat/completions", {**CHAT, "prompt_logprobs": None, "best_of": 1, "functions": [], "unknown": {}}),
    ("/v1/chat/completions/batch", {**CHAT, "messages": [CHAT["messages"], CHAT["messages"]]}),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 3, "logit_bias": {"5": 1.5}}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 1}),
    ("/v1/completions", {"prompt": [[1, 2], [3]]}),
    ("/v1/responses", {"model": "tiny", "input": "hello"}),
    ("/v1/responses", {"input": [{"role": "user", "content": "hello"}], "instructions": "be short"}),
    ("/v1/messages", {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/chat/completions/render", CHAT),
    ("/v1/completions/render", {"prompt": ["a", "b"]}),
    ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"max_tokens": 3, "stop": ["x"]}}),
    ("/tokenize", {"prompt": "hello"}),
    ("/tokenize", {"messages": CHAT["messages"], "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> WorkerRig:
    """With every route that can be switched on."""
    return WorkerRig(
        make_model_folder(tmp_path_factory.mktemp("models") / "tiny"),
        server=ServerSettings(server_dev_mode=True, enable_tokenizer_info_endpoint=True),
        engine=EngineSettings(engine="vllm", torch_profiler_dir="profiles"),
    )


@pytest.fixture(scope="module")
def api(rig: WorkerRig) -> Any:
    response = rig.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def methods_of(route: Route) -> Iterator[tuple[str, str]]:
    yield from ((method, route.path_format) for method in route.methods or () if method != "HEAD")


def test_every_route_is_described_and_nothing_else(rig: WorkerRig, api: Any) -> None:
    served = {pair for route in routes_of(rig.services) for pair in methods_of(route)}
    described = {(method.upper(), path) for path, methods in api["paths"].items() for method in methods}

    assert described == served
    assert set(OPERATIONS) == served, "apiserver/openapi/operations.py describes what is not served"


def test_a_route_without_a_description_is_named() -> None:
    with pytest.raises(UndocumentedRoutes, match="GET /new"):
        document([Route("/new", lambda _request: None)], title="", version="", has_keys=False)


def test_every_reference_leads_somewhere(api: Any) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    names = {reference.rpartition("/")[2] for reference in references(api)}

    assert names and names <= set(api["components"]["schemas"])


def schema_of(api: Any, path: str) -> dict[str, Any]:
    body = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**body, "components": api["components"]}


@pytest.mark.parametrize(("path", "request_body"), REQUESTS)
def test_the_schema_takes_what_the_server_takes(
    rig: WorkerRig, api: Any, path: str, request_body: dict[str, Any]
) -> None:
    jsonschema.validate(request_body, schema_of(api, path))

    assert rig.post(path, request_body).status_code == 200


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        ("/v1/chat/completions", {"messages": "hello"}),
        ("/v1/chat/completions", {**CHAT, "temperature": "hot"}),
        ("/v1/chat/completions", {**CHAT, "length_penalty": 2}),
        ("/v1/completions", {}),
        ("/v1/messages", {"messages": []}),
        ("/detokenize", {"tokens": ["a"]}),
    ],
)
def test_the_schema_refuses_what_the_server_refuses(
    rig: WorkerRig, api: Any, path: str, request_body: dict[str, Any]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(request_body, schema_of(api, path))

    assert rig.post(path, request_body).status_code == 400


def test_a_field_that_is_refused_says_so(api: Any) -> None:
    schemas = api["components"]["schemas"]
    fields = [schemas[kind.__name__]["properties"][name] for kind, table in TABLES.items() for name in table]

    assert all(field["description"].startswith("Not served") and None in field["enum"] for field in fields)


def test_keys_are_asked_for_where_they_are_needed(rig: WorkerRig, api: Any) -> None:
    guarded = document(routes_of(rig.services), title="", version="", has_keys=True)

    assert guarded["paths"]["/v1/completions"]["post"]["security"]
    assert "security" not in guarded["paths"]["/health"]["get"]
    assert "securitySchemes" not in api["components"]


def test_docs_is_one_page_that_loads_nothing_from_elsewhere(rig: WorkerRig) -> None:
    response = rig.get("/docs")

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text and "https://" not in response.text and "//cdn" not in response.text


def test_the_chat_page_is_there_unless_it_is_off(rig: WorkerRig) -> None:
    off = WorkerRig(Path(rig.model.path), preloaded=rig.preloaded, server=ServerSettings(ui=False))

    assert "script-src 'sha256-" in rig.get("/").headers["content-security-policy"]
    assert off.get("/").status_code == 404 and "/" not in off.get("/openapi.json").json()["paths"]


def test_a_stream_says_its_stages_to_who_asks(rig: WorkerRig) -> None:
    def usage(options: dict[str, bool]) -> dict[str, Any]:
        text = rig.post("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": options}).text
        *_, last = (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {"))
        found: dict[str, Any] = last["usage"]
        return found

    assert "stages_ms" not in usage({"include_usage": True})
    assert set(usage({"include_stages": True})["stages_ms"]) == {"queue", "prefill", "decode"}


def test_the_schemas_are_json_schemas(api: Any) -> None:
    for schema in api["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
