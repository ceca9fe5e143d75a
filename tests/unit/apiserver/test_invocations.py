"""POST /invocations: by its fields a body is a chat, a completion or an embedding."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def rig(tmp_path: Path) -> WorkerRig:
    return WorkerRig(make_model_folder(tmp_path / "tiny"))


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("id", "created")}


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "hi"})])
def test_the_answer_is_that_of_the_route(rig: WorkerRig, path: str, body: dict[str, Any]) -> None:
    direct, invoked = rig.post(path, body), rig.post("/invocations", body)

    assert invoked.status_code == 200 and without_ids(invoked.json()) == without_ids(direct.json())
    assert rig.engine.prompts[0] == rig.engine.prompts[1]


def test_streams_pass(rig: WorkerRig) -> None:
    response = rig.post("/invocations", {"prompt": "hi", "stream": True})

    assert response.headers["content-type"].startswith("text/event-stream") and response.text.endswith("[DONE]\n\n")


def test_an_embedding_is_refused_as_its_route_refuses_it(rig: WorkerRig) -> None:
    response = rig.post("/invocations", {"input": "hi", "dimensions": -1})

    assert (response.status_code, error_of(response)["param"]) == (400, "dimensions")


@pytest.mark.parametrize("body", [{}, {"model": "tiny"}])
def test_a_body_of_no_route_is_refused(rig: WorkerRig, body: dict[str, Any]) -> None:
    response = rig.post("/invocations", body)

    assert response.status_code == 400 and "messages, prompt, input" in error_of(response)["message"]


def test_what_is_no_object_is_refused(rig: WorkerRig) -> None:
    assert rig.request("POST", "/invocations", content=b"[1]").status_code == 400
    assert rig.request("POST", "/invocations", content=b"{").status_code == 400
