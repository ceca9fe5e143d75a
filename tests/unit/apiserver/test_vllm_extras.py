"""What a worker does with what only an engine vllm understands: names of adapters, parameters of a KV connector, sleep."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.settings import EngineSettings, ServerSettings
from ipc.messages import Action, EngineAnswer, SleepOptions, VllmExtras
from tests.unit.apiserver.worker_rig import WorkerRig, error_of, make_model_folder

TOLD = {"do_remote_decode": True, "remote_block_ids": [1, 2]}
VLLM = EngineSettings(engine="vllm", lora_modules=("poems=/adapters/poems", "laws=/adapters/laws"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


def vllm_rig(folder: Path, script: Any = None) -> WorkerRig:
    return WorkerRig(folder, script, engine=VLLM, server=ServerSettings(server_dev_mode=True))


def test_adapters_are_models_whose_parent_is_the_model(folder: Path) -> None:
    rig = vllm_rig(folder)

    cards = rig.get("/v1/models").json()["data"]

    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("tiny", "tiny", None), ("alias", "tiny", None),
        ("poems", "/adapters/poems", "tiny"), ("laws", "/adapters/laws", "tiny"),
    ]  # fmt: skip
    assert rig.get("/v1/models/laws").json() == cards[-1]


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_a_request_for_an_adapter_says_so_to_the_engine_and_in_its_answer(folder: Path, ask: str) -> None:
    rig = vllm_rig(folder)

    answers = [
        getattr(rig, ask)(model=name, stream=is_stream) for name in ("laws", "tiny") for is_stream in (False, True)
    ]

    assert [request.vllm for request in rig.engine.requests] == [VllmExtras(lora="laws")] * 2 + [None] * 2
    assert answers[0].json()["model"] == "laws" and '"model":"laws"' in answers[1].text


def test_a_name_that_is_neither_is_not_found(folder: Path) -> None:
    refused = vllm_rig(folder).chat(model="prose")

    assert refused.status_code == 404 and "tiny, alias, poems, laws" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi", "n": 2}),
        ("/inference/v1/generate", {"token_ids": [5], "sampling_params": {"max_tokens": 3}}),
    ],
)
def test_kv_transfer_params_go_to_the_engine_and_what_it_says_is_in_the_answer(
    folder: Path, path: str, body: dict[str, Any]
) -> None:
    rig = vllm_rig(folder)
    rig.engine.attachment = msgspec.json.encode({"remote_block_ids": [7]})

    said = rig.post(path, {**body, "kv_transfer_params": TOLD}).json()
    silent = rig.post(path, {**body, "kv_transfer_params": {}}).json()
    streamed = rig.post(path, {**body, "kv_transfer_params": TOLD, "stream": True})

    first, *_ = rig.engine.requests
    assert first.vllm is not None and msgspec.msgpack.decode(first.vllm.kv_transfer_params) == TOLD
    assert said["kv_transfer_params"] == {"remote_block_ids": [7]}
    assert silent["kv_transfer_params"] is None
    assert streamed.status_code == 200 and "kv_transfer_params" not in streamed.text, "as in vLLM"


def test_other_engines_refuse_them_by_name(folder: Path) -> None:
    rig = WorkerRig(folder)

    refused = rig.complete(kv_transfer_params=TOLD)
    wrong = rig.complete(kv_transfer_params=[1])

    assert (refused.status_code, error_of(refused)["param"]) == (400, "kv_transfer_params")
    assert wrong.status_code == 400 and rig.engine.requests == []
    assert rig.complete(kv_transfer_params={}).status_code == 200


def test_sleep_is_told_to_all_engines(folder: Path) -> None:
    rig = vllm_rig(folder)
    rig.engine.control_answers = (EngineAnswer(engine=0, ticket=0, count=1), EngineAnswer(engine=1, ticket=0, count=0))

    slept = rig.post("/sleep?level=2&mode=wait").json()
    woken = rig.post("/wake_up?tags=weights").json()
    is_sleeping = rig.get("/is_sleeping").json()
    others = [rig.post("/pause?mode=keep&clear_cache=false"), rig.post("/resume"), rig.get("/is_paused")]
    others.append(rig.post("/release_kv_cache_memory"))

    assert [(control.action, control.sleep) for control in rig.engine.controls] == [
        (Action.SLEEP, SleepOptions(level=2, mode="wait")),
        (Action.WAKE_UP, SleepOptions(tags=("weights",))),
        (Action.IS_SLEEPING, SleepOptions()),
        (Action.PAUSE, SleepOptions(mode="keep", clears_cache=False)),
        (Action.RESUME, SleepOptions()),
        (Action.IS_PAUSED, SleepOptions()),
        (Action.RELEASE_KV_CACHE, SleepOptions()),
    ]
    assert [answer.json() for answer in others] == [
        {"status": "paused"}, {"status": "resumed"}, {"is_paused": True}, {"status": "kv_cache_released"},
    ]  # fmt: skip
    assert slept == {"status": "sleeping", "level": 2}
    assert woken == {"status": "sleeping", "tags": ["weights"]}, "one of them is not whole yet"
    assert is_sleeping == {"is_sleeping": True}


def test_what_vllm_would_not_understand_is_refused_and_its_own_refusal_is_quoted(folder: Path) -> None:
    rig = vllm_rig(folder)

    for query in ("level=3", "level=x", "mode=now"):
        assert rig.post(f"/sleep?{query}").status_code == 400, query
    assert rig.post("/reset_prefix_cache?reset_external=maybe").status_code == 400
    rig.engine.control_answers = (EngineAnswer(engine=0, ticket=0, fault="no"),)
    assert error_of(rig.post("/wake_up"))["message"] == "engine 0: no"
    assert rig.post("/reset_prefix_cache?reset_running_requests=true").json() == {"success": False}
    assert rig.engine.controls[-1].reset.running and not rig.engine.controls[-1].reset.external


def test_only_an_engine_vllm_sleeps(folder: Path) -> None:
    rig = WorkerRig(folder, server=ServerSettings(server_dev_mode=True))

    assert (
        rig.post("/sleep").status_code == rig.get("/is_sleeping").status_code == rig.post("/pause").status_code == 404
    )


def test_parameters_of_a_connector_that_no_message_could_carry_are_a_400(folder: Path) -> None:
    answer = vllm_rig(folder).chat(kv_transfer_params={"block": 1 << 70})

    assert answer.status_code == 400 and error_of(answer)["param"] == "kv_transfer_params"
