"""The fleet before a real vLLM that it starts itself, beside vLLM's own server with the same flags: `make vllm-test`."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from loadtests.peers.server import free_port
from loadtests.processes import descendants, title
from tests.conftest import VLLM_ENV, VLLM_START_TIMEOUT_S
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

FLAGS = ("--max-model-len", "2048", "--dtype", "float32")
CONNECTOR = {
    "kv_connector": "EchoConnector", "kv_connector_module_path": "tests.vllm.echo_connector", "kv_role": "kv_both",
}  # fmt: skip
VLLM_FLAGS = (
    "--enforce-eager", "--no-enable-prefix-caching",  # a hit computes in another order, which float32 shows
    "--kv-transfer-config", json.dumps(CONNECTOR),
)  # fmt: skip
ADAPTER = "other"
AT_ONCE = 10
TOPICS = ("tea", "rivers", "the moon", "bread", "trains", "chess", "glass", "winter", "maps", "ants")
OPENINGS = (
    "The history of {}", "Write about {}:", "Q: What do we know of {}?\nA:", "# {}\n\n", "{} and its opposite",
    "Once upon a time there was {},", "def {}(", "List five facts on {}:\n1.", "In 1850, {}", "Dear reader, {}",
)  # fmt: skip
PROMPTS = [f"{opening.format(topic)} " for topic in TOPICS for opening in OPENINGS]


@pytest.fixture(scope="module")
def vllm_python(request: pytest.FixtureRequest) -> str:
    python = request.config.getoption("--vllm-python")
    if not python:
        pytest.skip("--vllm-python says which interpreter has vLLM")
    os.environ.update(VLLM_ENV)
    return str(python)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> str:
    """A LoRA adapter of random weights, large enough to change every text."""
    config = json.loads((model_folder / "config.json").read_text())
    hidden, rank = config["hidden_size"], 8
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
        weights[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator) / 8
    folder = tmp_path_factory.mktemp("adapter")
    save_file(weights, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**told, "bias": "none", "base_model_name_or_path": "m"}))
    return str(folder)


def greedy(base_url: str, prompt: str, max_tokens: int = 16, model: str | None = None) -> str:
    model = model or httpx.get(base_url + "/v1/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    response = httpx.post(base_url + "/v1/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def texts_of(base_url: str, prompts: list[str], model: str) -> list[str]:
    """Some at once: in float32 what runs beside a request changes its text once in many thousand tokens."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda prompt: greedy(base_url, prompt, model=model), prompts))


@pytest.fixture(scope="module")
def vllms_own_texts(
    vllm_python: str, model_folder: Path, adapter: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """Of vLLM's own server, which is gone before the fleet starts: there is memory for one. By the model's name."""
    port = free_port()
    command = [
        vllm_python, "-m", "vllm.entrypoints.cli.main", "serve", str(model_folder), "--port", str(port), *FLAGS, *VLLM_FLAGS,
        "--served-model-name", "model", "--enable-lora", "--lora-modules", f"{ADAPTER}={adapter}",
    ]  # fmt: skip
    log_path = tmp_path_factory.mktemp("vllm") / "log"
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    base_url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, log_path.read_text()[-3000:]
        try:
            return httpx.get(base_url + "/health").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        _wait_until(answers, VLLM_START_TIMEOUT_S)
        return {
            "model": texts_of(base_url, PROMPTS, "model"),
            ADAPTER: texts_of(base_url, PROMPTS[:10], ADAPTER),
        }
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def fleet(
    vllm_python: str,
    vllms_own_texts: dict[str, list[str]],
    model_folder: Path,
    adapter: str,
    profiles: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    with Fleet(
        tmp_path_factory.mktemp("fleet") / "log", str(model_folder), "--workers", "2", *FLAGS,
        "--served-model-name", "model", "--lora-modules", f"{ADAPTER}={adapter}",
        "--engine", "vllm", "--vllm-python", vllm_python, "--server-dev-mode", "--torch-profiler-dir", str(profiles),
        "--", *VLLM_FLAGS, start_timeout_s=VLLM_START_TIMEOUT_S,
    ) as fleet:  # fmt: skip
        yield fleet


def test_greedy_texts_are_those_of_vllms_own_server(fleet: Fleet, vllms_own_texts: dict[str, list[str]]) -> None:
    texts = texts_of(fleet.base_url, PROMPTS, "model")

    assert len(texts) == 100 and len(set(texts)) > 75
    assert texts == vllms_own_texts["model"]


def test_an_adapter_is_asked_for_by_its_name(fleet: Fleet, vllms_own_texts: dict[str, list[str]], adapter: str) -> None:
    texts = texts_of(fleet.base_url, PROMPTS[:10], ADAPTER)
    cards = {card["id"]: card for card in httpx.get(fleet.base_url + "/v1/models").json()["data"]}
    unknown = httpx.post(fleet.base_url + "/v1/completions", json={"model": "none", "prompt": "hi"}, timeout=60)

    assert texts == vllms_own_texts[ADAPTER]
    assert all(text != plain for text, plain in zip(texts, vllms_own_texts["model"], strict=False))
    assert (cards[ADAPTER]["root"], cards[ADAPTER]["parent"]) == (adapter, "model")
    assert unknown.status_code == 404


def test_a_kv_connector_is_told_and_says_what_it_does(fleet: Fleet) -> None:
    told = {"do_remote_decode": True, "remote_engine_id": "é", "remote_block_ids": [1, 70_000]}
    body = {"prompt": "The history of tea", "max_tokens": 2, "temperature": 0, "kv_transfer_params": told}

    said = httpx.post(fleet.base_url + "/v1/completions", json=body, timeout=60).json()["kv_transfer_params"]

    assert said == {"told": told, "num_blocks": 1}


def test_vllm_sleeps_and_wakes_through_any_worker(fleet: Fleet) -> None:
    def post(path: str) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.post(fleet.base_url + path, timeout=60).json()
        return answer

    found: list[str] = []
    states = [httpx.get(fleet.base_url + "/is_sleeping", timeout=60).json()]
    slept = post("/sleep?level=0&mode=keep")
    states.append(httpx.get(fleet.base_url + "/is_sleeping", timeout=60).json())
    thread = threading.Thread(target=lambda: found.append(greedy(fleet.base_url, PROMPTS[1])))
    thread.start()
    thread.join(2)
    was_waiting = thread.is_alive()
    woken = post("/wake_up")
    thread.join(60)

    assert states == [{"is_sleeping": False}, {"is_sleeping": True}]
    assert slept == {"status": "sleeping", "level": 0} and woken == {"status": "awake", "tags": None}
    assert was_waiting and found, "a request that comes meanwhile waits"
    assert httpx.post(fleet.base_url + "/sleep?level=3", timeout=60).status_code == 400


def test_vllm_is_profiled_beside_the_workers(fleet: Fleet, profiles: Path) -> None:
    started = httpx.post(fleet.base_url + "/start_profile", json={"profile_prefix": "mine"}, timeout=120)
    greedy(fleet.base_url, PROMPTS[2])
    stopped = httpx.post(fleet.base_url + "/stop_profile", timeout=120)

    assert (started.status_code, stopped.status_code) == (200, 200), started.text + stopped.text
    assert [path for path in profiles.rglob("*mine*") if "trace" in path.name], list(profiles.rglob("*"))


def test_a_form_beside_allowed_tokens_is_refused_with_a_reason(fleet: Fleet) -> None:
    body = {"prompt": "hi", "structured_outputs": {"choice": ["a", "b"]}, "allowed_token_ids": [5]}

    refused = httpx.post(fleet.base_url + "/v1/completions", json=body, timeout=60)

    assert refused.status_code == 400 and "allowed_token_ids" in refused.json()["error"]["message"]


def test_what_a_client_gives_up_is_given_up_by_vllm(fleet: Fleet) -> None:
    for _ in range(4):
        body = {"prompt": "Once upon a time", "max_tokens": 1500, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", fleet.base_url + "/v1/completions", json=body, timeout=60) as response:
            next(response.iter_lines())

    fleet.wait_until(lambda: gauges(fleet) == [0.0, 0.0], 30)
    assert greedy(fleet.base_url, PROMPTS[0])


def test_an_operator_reaches_vllm_through_any_worker(fleet: Fleet) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "request_id": "long"}
    found: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: found.append(httpx.post(fleet.base_url + "/v1/completions", json=body, timeout=60))
    )
    thread.start()
    fleet.wait_until(lambda: gauges(fleet)[0] == 1.0, 30)

    aborted = httpx.post(fleet.base_url + "/abort_requests", json={"request_ids": ["long"]}, timeout=60).json()
    thread.join(30)
    fleet.wait_until(lambda: gauges(fleet) == [0.0, 0.0], 30)
    reset = httpx.post(fleet.base_url + "/reset_prefix_cache", timeout=60).json()

    assert (aborted["aborted"], found[0].json()["choices"][0]["finish_reason"]) == (1, "abort")
    assert reset == {"success": True}


def test_a_killed_engine_core_is_started_again_and_streams_go_on_behind_what_was_delivered(fleet: Fleet) -> None:
    """The greedy ones with their texts; the last, sampled and without a seed, to its whole length."""
    prompts = [*PROMPTS[:5], "Once more, with feeling: "]
    wanted = {prompt: greedy(fleet.base_url, prompt, max_tokens=48) for prompt in prompts[:-1]}
    pieces: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    ends: dict[str, Any] = {}

    def ask(prompt: str) -> None:
        body = {
            "prompt": prompt, "max_tokens": 48, "stream": True, "temperature": 0.0 if prompt in wanted else 0.8,
            "ignore_eos": prompt not in wanted, "stream_options": {"include_usage": True},
        }  # fmt: skip
        with httpx.stream("POST", fleet.base_url + "/v1/completions", json=body, timeout=300) as response:
            for line in response.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
                pieces[prompt] += [choice["text"] for choice in event.get("choices", ())]
                ends[prompt] = line or ends.get(prompt, "")
                if event.get("usage"):
                    ends[f"{prompt} usage"] = event["usage"]["completion_tokens"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    fleet.wait_until(lambda: all(len(texts) > 2 for texts in pieces.values()), 60)
    [core] = [pid for pid in descendants(fleet.process.pid) if title(pid).startswith("VLLM::EngineCore")]
    os.kill(core, signal.SIGKILL)
    num_delivered = {prompt: len(texts) for prompt, texts in pieces.items()}
    for thread in threads:
        thread.join(300)

    assert max(num_delivered.values()) < 40, "it was killed in the middle of them"
    assert {prompt: "".join(pieces[prompt]) for prompt in wanted} == wanted
    assert all(ends[prompt] == "data: [DONE]" for prompt in prompts)
    assert ends[f"{prompts[-1]} usage"] == 48


def gauges(fleet: Fleet) -> list[float]:
    """Running requests and K/V usage."""
    lines = httpx.get(fleet.base_url + "/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:kv_cache_usage_perc{")
    return [float(line.rsplit(" ", 1)[1]) for name in names for line in lines if line.startswith(name)]


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    done = threading.Event()
    for _ in range(int(timeout_s * 4)):
        if condition():
            return
        done.wait(0.25)
    raise AssertionError(f"not within {timeout_s} s")
