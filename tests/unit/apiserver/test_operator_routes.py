"""What an operator may say to one worker, and what becomes of it there; the fleet's half is tests/integration/test_operator."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from apiserver.openapi.operations import OPERATIONS
from config.settings import EngineSettings, ServerSettings
from ipc.messages import Action, EngineAnswer, EngineLost, Generate
from ipc.record import FinishCode
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

DEV_ROUTES = [
    ("POST", "/abort_requests"),
    ("POST", "/inference/v1/abort_requests"),
    ("POST", "/reset_prefix_cache"),
    ("GET", "/server_info"),
]
PROFILE_ROUTES = [("POST", "/start_profile"), ("POST", "/stop_profile")]
TOKENIZER_ROUTES = [("GET", "/tokenizer_info")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def dev_rig(folder: Path, tmp_path: Path, script: Any = None, **server: Any) -> WorkerRig:
    return WorkerRig(
        folder,
        script,
        server=ServerSettings(server_dev_mode=True, enable_tokenizer_info_endpoint=True, **server),
        engine=EngineSettings(torch_profiler_dir=str(tmp_path / "profiles")),
    )


# ── who may ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_they_are_there_only_where_they_were_switched_on(folder: Path, tmp_path: Path) -> None:
    plain, dev = WorkerRig(folder), dev_rig(folder, tmp_path)

    for method, path in DEV_ROUTES + PROFILE_ROUTES + TOKENIZER_ROUTES:
        assert plain.request(method, path).status_code == 404, path
        assert dev.request(method, path).status_code != 404, path
    only_dev = WorkerRig(folder, server=ServerSettings(server_dev_mode=True))
    assert only_dev.post("/start_profile").status_code == 404
    assert only_dev.get("/tokenizer_info").status_code == 404


def test_they_ask_for_the_key(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path, api_key=("secret",))

    for method, path in DEV_ROUTES + PROFILE_ROUTES + TOKENIZER_ROUTES:
        assert rig.request(method, path).status_code == 401, path
        allowed = rig.request(method, path, headers={"authorization": "Bearer secret"}, json={"request_ids": ["a"]})
        assert allowed.status_code == 200, path


def test_all_of_them_are_described(folder: Path, tmp_path: Path) -> None:
    described = dev_rig(folder, tmp_path).get("/openapi.json").json()["paths"]

    for method, path in DEV_ROUTES + PROFILE_ROUTES + TOKENIZER_ROUTES:
        assert method.lower() in described[path]
        assert (method, path) in OPERATIONS


# ── aborting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_of_answers_are_those_of_their_requests(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)
    rig.engine.control_answers = (EngineAnswer(engine=0, ticket=0, count=2), EngineAnswer(engine=1, ticket=0, count=1))

    answer = rig.post("/abort_requests", {"request_ids": ["chatcmpl-a", "b", "cmpl-c", "b"]})

    assert answer.json() == {"status": "aborted", "aborted": 3}
    [control] = rig.engine.controls
    assert (control.action, control.request_ids) == (
        Action.ABORT_REQUESTS, ("chatcmpl-a", "a", "b", "cmpl-c", "c"),
    )  # fmt: skip


def test_without_ids_all_are_meant_on_one_route_and_none_on_the_other(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)

    assert rig.post("/abort_requests", {}).status_code == 200
    assert rig.engine.controls[0].request_ids == ()
    refused = rig.post("/inference/v1/abort_requests", {"request_ids": []})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "request_ids")
    assert rig.post("/abort_requests", {"request_ids": "a"}).status_code == 400
    assert len(rig.engine.controls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_request_ends_with_that_reason(folder: Path, stream: bool) -> None:
    rig = WorkerRig(folder, lambda _message, _prompt: None)

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        body = {"prompt": "hi", "stream": stream}
        pending = asyncio.create_task(client.post("/v1/completions", json=body))
        while not rig.engine.requests:
            await asyncio.sleep(0)
        rig.engine.finish(rig.engine.requests[0].stream_id, 0, FinishCode.ABORT)
        return await pending

    text = rig.with_client(use).text

    last = json.loads(text.split("\n\n")[-3].removeprefix("data: ")) if stream else json.loads(text)
    assert last["choices"][0]["finish_reason"] == "abort"


def test_what_no_engine_has_is_ended_where_it_waits(folder: Path) -> None:
    """Its engine was lost, and none has come since: no engine can be told."""
    rig = WorkerRig(folder, lose, journal=True)

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        pending = [
            asyncio.create_task(client.post("/v1/completions", json={"prompt": "hi", "request_id": name}))
            for name in ("a", "b")
        ]
        await until_done(rig, pending[0], frozenset(("a",)))
        assert not pending[1].done()
        await until_done(rig, pending[1], frozenset())
        return [task.result() for task in pending]

    for response in rig.with_client(use):
        assert response.status_code == 500
        assert "aborted" in error_of(response)["message"]


async def until_done(rig: WorkerRig, task: asyncio.Task[httpx.Response], request_ids: frozenset[str]) -> None:
    """It is parked at some time, and from then on it can be ended."""
    async with asyncio.timeout(20):
        while not task.done():
            rig.client.abort_parked(request_ids)
            await asyncio.sleep(0)


def lose(message: Generate, _prompt: list[int]) -> EngineLost:
    return EngineLost(engine=0, stream_ids=(message.stream_id,))


# ── the prefix cache, and engines that do not answer ─────────────────────────────────────────────────────────────────


def test_the_prefix_cache_is_reset_where_every_engine_says_so(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)

    assert rig.post("/reset_prefix_cache").json() == {"success": True}
    rig.engine.control_answers = (EngineAnswer(engine=0, ticket=0, fault="no"),)
    assert rig.post("/reset_prefix_cache").json() == {"success": False}
    rig.engine.control_answers = ()
    assert error_of(rig.post("/reset_prefix_cache"))["code"] == "no_engine"


def test_silent_engines_are_a_503(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apiserver.fleet_control.ANSWER_S", 0.01)
    rig = dev_rig(folder, tmp_path)
    rig.engine.control_answers = None

    response = rig.post("/reset_prefix_cache")

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert error_of(response)["code"] == "no_answer"


# ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_profile_is_told_to_the_engines_and_taken_of_this_worker(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)

    started = rig.post("/start_profile", {"profile_prefix": "run", "delay_iterations": 2, "max_iterations": 5})
    stopped = rig.post("/stop_profile")

    assert (started.status_code, stopped.status_code) == (200, 200)
    begin, end = rig.engine.controls
    assert (begin.action, end.action) == (Action.START_PROFILE, Action.STOP_PROFILE)
    profile = begin.profile
    assert (profile.prefix, profile.delay_iterations, profile.max_iterations) == ("run_", 2, 5)
    while not list((tmp_path / "profiles").glob("run_worker_0.*.collapsed")):
        pass


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"profile_prefix": "../up"}, "profile_prefix"),
        ({"profile_prefix": ""}, "profile_prefix"),
        ({"max_iterations": -1}, "max_iterations"),
        ({"delay_iterations": "2"}, "delay_iterations"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(folder: Path, tmp_path: Path, body: dict[str, Any], param: str) -> None:
    rig = dev_rig(folder, tmp_path)

    response = rig.post("/start_profile", body)

    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert rig.engine.controls == []


def test_an_engine_that_cannot_is_quoted(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)
    rig.engine.control_answers = (EngineAnswer(engine=1, ticket=0, fault="taken already"),)

    response = rig.post("/stop_profile")

    assert (response.status_code, error_of(response)["message"]) == (400, "engine 1: taken already")


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_is_shown_without_its_secrets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENFLEET_API_KEY", "secret")
    monkeypatch.setenv("TOKENFLEET_OTLP_TRACES_ENDPOINT", "http://user:word@collector/v1")
    rig = dev_rig(folder, tmp_path, api_key=("secret",))
    headers = {"authorization": "Bearer secret"}

    as_json = rig.get("/server_info?config_format=json", headers=headers)
    as_text = rig.get("/server_info", headers=headers)

    assert "secret" not in as_json.text + as_text.text and "word" not in as_json.text
    config = as_json.json()["tokenfleet_config"]
    assert config["server"]["api_key"] == "(1 hidden)"
    assert (config["engine"]["block_size"], config["model"]["served_model_name"]) == ("16", "tiny, alias")
    assert as_json.json()["tokenfleet_env"]["TOKENFLEET_API_KEY"] == "(hidden)"
    assert "engine.block_size = 16\n" in as_text.json()["tokenfleet_config"]
    assert rig.get("/server_info?config_format=xml", headers=headers).status_code == 400


def test_the_tokenizer_is_described_as_its_folder_has_it(folder: Path, tmp_path: Path) -> None:
    rig = dev_rig(folder, tmp_path)

    info = rig.get("/tokenizer_info").json()

    assert (info["bos_token"], info["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert info["chat_template"] == rig.model.chat_template


def test_tokens_that_are_described_by_objects_are_their_texts(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    config = {
        "tokenizer_class": "X", "vocab_file": "/home/somebody/vocab", "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "added_tokens_decoder": {"2": {"content": "<|im_end|>"}}, "additional_special_tokens": [{"content": "<a>"}],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    info = dev_rig(folder, tmp_path).get("/tokenizer_info").json()

    assert info["eos_token"] == "<|im_end|>" and info["added_tokens_decoder"] == {"2": "<|im_end|>"}
    assert info["additional_special_tokens"] == ["<a>"] and "vocab_file" not in info
