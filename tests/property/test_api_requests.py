"""Whatever a client sends, the API answers with sense: 200, or a 4xx that names the fault; and serves the next request."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiserver.schema.requests import ChatRequest, CompletionRequest
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLAUSIBLE = st.sampled_from(
    [
        0,
        1,
        -1,
        2,
        7,
        0.5,
        1.0,
        True,
        False,
        None,
        "",
        "a",
        "none",
        [],
        [1],
        ["a"],
        {},
        {"1": 1},
        {"type": "text"},
        2**63,
    ]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "king"])},
        optional={
            "content": st.text(max_size=30) | JSON,
            "name": SCALARS,
            "tool_calls": JSON | st.just([{"function": {"name": "f", "arguments": "{}"}}]),
            "reasoning_content": SCALARS,
        },
    ),
    max_size=3,
)
PROMPTS = (
    st.text(max_size=40) | st.lists(st.integers(-1, 400), max_size=5) | st.lists(st.text(max_size=5), max_size=3) | JSON
)


def bodies(needed: dict[str, st.SearchStrategy[Any]], names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """A body with a few fields set to plausible or any values."""
    extras = st.dictionaries(st.sampled_from(names), PLAUSIBLE | JSON, max_size=4)
    return st.builds(lambda extra, base: {**base, **extra}, extras, st.fixed_dictionaries(needed))


CHATS = bodies({"messages": MESSAGES}, ChatRequest.__struct_fields__)
COMPLETIONS = bodies({"prompt": PROMPTS}, CompletionRequest.__struct_fields__)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerRig]:
    rig = WorkerRig(make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))
    yield rig
    assert rig.client.num_streams == 0, "no stream is left over"
    assert rig.complete("a").status_code == 200


def check(rig: WorkerRig, path: str, content: bytes) -> None:
    response = rig.request("POST", path, content=content)

    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    error = error_of(response)
    assert isinstance(error["message"], str) and error["message"]
    assert error["type"] == "invalid_request_error"


@given(body=CHATS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chat_is_answered_or_refused(rig: WorkerRig, body: dict[str, Any]) -> None:
    check(rig, "/v1/chat/completions", json.dumps(body).encode())


@given(body=COMPLETIONS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_completion_is_answered_or_refused(rig: WorkerRig, body: dict[str, Any]) -> None:
    check(rig, "/v1/completions", json.dumps(body).encode())


@given(body=COMPLETIONS, cut=st.integers(0, 200), junk=st.binary(max_size=8))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_refused(rig: WorkerRig, body: dict[str, Any], cut: int, junk: bytes) -> None:
    content = json.dumps(body).encode()
    check(rig, "/v1/completions", content[:cut] + junk + content[cut:])


@given(body=JSON, path=st.sampled_from(["/tokenize", "/detokenize"]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tokenize_request_is_answered_or_refused(rig: WorkerRig, body: Any, path: str) -> None:
    check(rig, path, json.dumps(body).encode())


@given(text=st.text(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_tokenize_and_detokenize(rig: WorkerRig, text: str) -> None:
    tokens = rig.post("/tokenize", {"prompt": text}).json()["tokens"]

    assert rig.post("/detokenize", {"tokens": tokens}).json()["prompt"] == text
