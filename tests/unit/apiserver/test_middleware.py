"""Around every request: keys, request ids, CORS, log lines, crashes; and the probes."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from apiserver.preload import Preloaded
from config.settings import ServerSettings
from ipc.fleet_page import State
from tests.unit.apiserver.worker_rig import WorkerRig, error_of


@pytest.fixture
def rig(folder: Path, preloaded: Preloaded) -> WorkerRig:
    return WorkerRig(folder, preloaded=preloaded)


@pytest.fixture
def guarded(folder: Path, preloaded: Preloaded) -> WorkerRig:
    server = ServerSettings(api_key=("secret-1", "secret-2"), allowed_origins=("https://app.example",))
    return WorkerRig(folder, preloaded=preloaded, server=server)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret-1", "secret-1", "Bearer secret-12"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/nowhere", "/nowhere", "/tokenize", "/v1/chat/completions"])
def test_without_a_valid_key_the_api_is_401(guarded: WorkerRig, path: str, authorization: str | None) -> None:
    response = guarded.get(path, headers={"authorization": authorization} if authorization is not None else {})

    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert error_of(response)["code"] == "invalid_api_key"


@pytest.mark.parametrize("authorization", ["Bearer secret-1", "bearer secret-2", "Bearer  secret-1 "])
def test_any_of_the_keys_opens(guarded: WorkerRig, authorization: str) -> None:
    assert guarded.get("/v1/models", headers={"authorization": authorization}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/livez",
        "/readyz",
        "/startupz",
        "/ping",
        "/metrics",
        "/version",
        "/load",
        "/",
        "/docs",
        "/openapi.json",
    ],
)
def test_probes_metrics_and_pages_need_no_key(guarded: WorkerRig, path: str) -> None:
    assert guarded.get(path).status_code in (200, 503)


def test_cors_is_off_unless_origins_are_set(rig: WorkerRig, guarded: WorkerRig) -> None:
    headers = {"origin": "https://app.example"}
    preflight = {**headers, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}

    assert "access-control-allow-origin" not in rig.get("/v1/models", headers=headers).headers
    assert rig.request("OPTIONS", "/v1/chat/completions", headers=preflight).status_code == 405
    allowed = guarded.request("OPTIONS", "/v1/chat/completions", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
    foreign = guarded.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_a_browser_can_read_a_refusal(guarded: WorkerRig) -> None:
    response = guarded.get("/v1/models", headers={"origin": "https://app.example"})

    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "https://app.example"


def test_a_request_id_is_echoed_and_names_the_response(rig: WorkerRig) -> None:
    response = rig.post("/v1/completions", {"prompt": "a"}, headers={"x-request-id": "my-id-7"})

    assert response.headers["x-request-id"] == "my-id-7"
    assert response.json()["id"] == "cmpl-my-id-7"
    assert rig.engine.requests[0].request_id == "my-id-7"
    assert rig.complete(request_id="from-body").json()["id"] == "cmpl-from-body"


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"tab\there", b"\xc3\xa9"])
def test_an_unfit_request_id_is_replaced(rig: WorkerRig, given: bytes) -> None:
    response = rig.get("/v1/models", headers=[(b"x-request-id", given)])

    assert len(response.headers["x-request-id"]) == 32


def test_every_response_has_an_id_of_its_own(rig: WorkerRig) -> None:
    ids = {rig.get(path).headers["x-request-id"] for path in ("/v1/models", "/nowhere", "/livez")}

    assert len(ids) == 3


def request_line(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = [record for record in caplog.records if record.name == "tokenfleet.request"]
    return record


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_with_counts_and_no_text(
    rig: WorkerRig, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    with caplog.at_level(logging.INFO, logger="tokenfleet.request"):
        rig.complete("my secret prompt", stream=stream, n=2)

    fields: dict[str, Any] = request_line(caplog).__dict__
    assert fields["msg"] == "request"
    assert (fields["status"], fields["path"], fields["method"]) == (200, "/v1/completions", "POST")
    assert (fields["prompt_tokens"], fields["num_choices"], fields["finish"]) == (len(rig.engine.prompts[0]), 2, "stop")
    assert fields["is_stream"] is stream
    assert "secret" not in str(fields) and "Hello" not in str(fields)


def test_a_refusal_is_logged_by_kind_and_never_quotes_the_request(
    rig: WorkerRig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tokenfleet.request"):
        rig.complete("a", stop_token_ids=[-12345])

    fields = request_line(caplog).__dict__
    assert (fields["status"], fields["error"]) == (400, "InvalidRequest")
    assert "12345" not in str(fields)


def test_probes_are_not_logged_at_info(rig: WorkerRig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tokenfleet.request"):
        rig.get("/livez")
        rig.get("/metrics")

    assert caplog.records == []


def test_a_crash_is_a_500_in_shape_and_the_next_request_is_served(
    folder: Path, preloaded: Preloaded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = WorkerRig(folder, preloaded=preloaded)

    def crash(*_arguments: object) -> None:
        raise RuntimeError("a bug of ours: internals")

    with monkeypatch.context() as patched:
        patched.setattr(rig.client, "block_hashes", crash)
        response = rig.complete("a")

    assert response.status_code == 500
    assert error_of(response) == {"message": "internal error", "type": "server_error", "param": None, "code": None}
    assert "a bug of ours" in caplog.text
    assert rig.complete("a").status_code == 200


def test_http_metrics_count_by_handler_and_never_by_foreign_path(rig: WorkerRig) -> None:
    rig.complete("a")
    rig.get("/some/scanner/path")

    text = rig.get("/metrics").text

    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1.0' in text or (
        'http_requests_total{method="POST",handler="/v1/completions",status="2xx"} 1.0' in text
    )
    assert "scanner" not in text
    assert 'handler="other"' in text
    assert "vllm:generation_tokens_total" in text


def test_metrics_are_text_0_0_4_whatever_is_asked_for(rig: WorkerRig) -> None:
    response = rig.get("/metrics", headers={"accept": "application/openmetrics-text"})

    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_that_answers_is_live_before_anything_else(rig: WorkerRig) -> None:
    assert rig.get("/livez").status_code == 200


def test_readiness_says_what_is_missing(rig: WorkerRig) -> None:
    response = rig.get("/readyz")

    assert response.status_code == 503
    assert {"no engine is ready", "the broker is not ready"} <= set(response.json()["reasons"])


@pytest.mark.parametrize("path", ["/readyz", "/health", "/ping"])
def test_ready_means_an_engine_and_the_broker_are(rig: WorkerRig, path: str) -> None:
    rig.set_ready()
    ready = rig.get(path)
    rig.fleet.is_draining = True
    draining = rig.get(path)

    assert (ready.status_code, ready.json()["reasons"]) == (200, [])
    assert (draining.status_code, draining.json()["reasons"]) == (503, ["the fleet is draining"])


def test_an_engine_whose_heart_stopped_is_not_ready(rig: WorkerRig) -> None:
    rig.set_ready()
    timeout_s = rig.services.settings.ops.heartbeat_timeout_s
    engine = rig.fleet.engines[0]
    engine._words[9] = time.monotonic_ns() - int((timeout_s + 1) * 1e9)

    assert rig.get("/readyz").json()["reasons"] == ["no engine is ready"]


def test_startup_tells_its_progress_until_an_engine_is_there(rig: WorkerRig) -> None:
    engine = rig.fleet.engines[0]
    engine.mark_alive(1)
    engine.state = State.STARTING
    engine.progress_permille = 400

    starting = rig.get("/startupz")
    engine.state = State.READY

    assert (starting.status_code, starting.json()["progress"]) == (503, 0.4)
    assert rig.get("/startupz").status_code == 200


def test_facts_are_served(rig: WorkerRig) -> None:
    assert rig.get("/version").json()["version"]
    assert rig.get("/load").json() == {"server_load": 0}


def test_probes_and_scrapes_do_not_count_as_http_requests(rig: WorkerRig) -> None:
    for path in ("/health", "/metrics", "/ping", "/load", "/version", "/v1/models"):
        rig.get(path)

    text = rig.services.exposition.render().decode()
    assert [line for line in text.splitlines() if line.startswith("http_requests_total")] == [
        'http_requests_total{handler="/v1/models",method="GET",status="2xx"} 1.0'
    ]


def test_made_up_methods_share_one_label(rig: WorkerRig) -> None:
    for number in range(50):
        rig.services.metrics.on_http(f"METHOD{number}", "other", 405, 0.01, 0, 0)

    text = rig.services.exposition.render().decode()
    assert [line for line in text.splitlines() if line.startswith("http_requests_total")] == [
        'http_requests_total{handler="other",method="other",status="4xx"} 50.0'
    ]
