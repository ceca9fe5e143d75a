"""The fleet before a real vLLM that it starts itself, beside vLLM's own server: `make vllm-test`."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from loadtests.peers.server import free_port
from loadtests.processes import descendants, title
from tests.conftest import VLLM_ENV
from tests.integration.fleet import Fleet

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

FLAGS = ("--max-model-len", "2048", "--dtype", "float32")
VLLM_FLAGS = ("--enforce-eager", "--no-enable-prefix-caching")  # a hit computes in another order, which float32 shows
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


def greedy(base_url: str, prompt: str, max_tokens: int = 16) -> str:
    model = httpx.get(base_url + "/v1/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    response = httpx.post(base_url + "/v1/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


@pytest.fixture(scope="module")
def vllms_own_texts(vllm_python: str, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of vLLM's own server, which is gone before the fleet starts: there is memory for one."""
    port = free_port()
    command = [
        vllm_python, "-m", "vllm.entrypoints.cli.main", "serve", str(model_folder), "--port", str(port), *FLAGS, *VLLM_FLAGS,
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
        _wait_until(answers, 240)
        return [greedy(base_url, prompt) for prompt in PROMPTS]
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def fleet(
    vllm_python: str, vllms_own_texts: list[str], model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    with Fleet(
        tmp_path_factory.mktemp("fleet") / "log", str(model_folder), "--workers", "2", *FLAGS,
        "--engine", "vllm", "--vllm-python", vllm_python, "--server-dev-mode", "--", *VLLM_FLAGS,
    ) as fleet:  # fmt: skip
        yield fleet


def test_greedy_texts_are_those_of_vllms_own_server(fleet: Fleet, vllms_own_texts: list[str]) -> None:
    texts = [greedy(fleet.base_url, prompt) for prompt in PROMPTS]

    assert len(texts) == 100 and len(set(texts)) > 75
    assert texts == vllms_own_texts


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


def test_a_killed_engine_core_is_started_again_and_greedy_streams_go_on_with_their_texts(fleet: Fleet) -> None:
    prompts = PROMPTS[:6]
    texts: dict[str, str] = {}
    wanted = {prompt: greedy(fleet.base_url, prompt, max_tokens=48) for prompt in prompts}

    def ask(prompt: str) -> None:
        texts[prompt] = greedy(fleet.base_url, prompt, max_tokens=48)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    fleet.wait_until(lambda: gauges(fleet)[0] == len(prompts), 30)
    [core] = [pid for pid in descendants(fleet.process.pid) if title(pid).startswith("VLLM::EngineCore")]
    os.kill(core, signal.SIGKILL)
    for thread in threads:
        thread.join(300)

    assert texts == wanted


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
