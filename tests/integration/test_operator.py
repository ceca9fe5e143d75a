"""What an operator says to one worker of a real fleet of two, and what the other one and the engine do."""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.fleet import Fleet

NUM_STREAMS = 6
ENDLESS = {"prompt": "hello " * 20, "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, profiles: Path) -> Iterator[Fleet]:
    flags = (
        "--workers", "2", "--dtype", "float32", "--server-dev-mode", "--enable-tokenizer-info-endpoint",
        "--torch-profiler-dir", str(profiles),
    )  # fmt: skip
    with Fleet(tmp_path_factory.mktemp("operator") / "fleet.log", *flags) as fleet:
        yield fleet


def post(fleet: Fleet, path: str, body: dict[str, Any] | None = None) -> Any:
    response = httpx.post(fleet.base_url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def generate(fleet: Fleet, name: str) -> tuple[list[str], str | None]:
    """Texts and the reason of the end of a stream, on a connection of its own."""
    texts, reason = [], None
    with httpx.stream(
        "POST", fleet.base_url + "/v1/completions", json={**ENDLESS, "request_id": name, "stream": True}, timeout=60
    ) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                texts.append(choice["text"])
                reason = choice["finish_reason"] or reason
    return texts, reason


def running_on(fleet: Fleet) -> dict[int, int]:
    """Streams in flight by worker, from the metrics of the whole fleet."""
    text = httpx.get(fleet.ops_url + "/metrics", timeout=10).text
    return {
        int(line.partition('worker="')[2].partition('"')[0]): int(float(line.rpartition(" ")[2]))
        for line in text.splitlines()
        if line.startswith("tokenfleet:open_streams{")
    }


def streams(fleet: Fleet, pool: ThreadPoolExecutor) -> list["Future[tuple[list[str], str | None]]"]:
    """On both workers: more are started until each has one."""
    found = []
    for number in range(NUM_STREAMS):
        found.append(pool.submit(generate, fleet, f"stream-{number}"))
    fleet.wait_until(lambda: sum(running_on(fleet).values()) == NUM_STREAMS, 30)
    assert all(running_on(fleet).values()), f"one worker has all the streams: {running_on(fleet)}"
    return found


def test_requests_of_both_workers_are_aborted_through_one_and_nobody_elses(fleet: Fleet) -> None:
    names = [f"stream-{number}" for number in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        found = streams(fleet, pool)

        answer = post(fleet, "/abort_requests", {"request_ids": [f"cmpl-{name}" for name in names[1:]]})

        assert answer == {"status": "aborted", "aborted": NUM_STREAMS - 1}
        for ended in found[1:]:
            texts, reason = ended.result(20)
            assert (reason, bool(texts)) == ("abort", True)
        assert not found[0].done()
        assert post(fleet, "/abort_requests", {})["aborted"] == 1
        assert found[0].result(20)[1] == "abort"
    fleet.wait_until(lambda: not any(running_on(fleet).values()), 20)


def test_forgotten_prefixes_are_computed_again_and_running_streams_go_on(fleet: Fleet) -> None:
    def cached_tokens(**fields: Any) -> int:
        usage = post(fleet, "/v1/completions", {**ENDLESS, "max_tokens": 1, **fields})["usage"]
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return cached

    cached_tokens()
    assert cached_tokens() > 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, fleet, "/v1/completions", {**ENDLESS, "max_tokens": 16})
        fleet.wait_until(lambda: any(running_on(fleet).values()), 20)

        assert post(fleet, "/reset_prefix_cache") == {"success": True}

        assert cached_tokens() == 0
        body = running.result(60)
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (16, "length")
    assert cached_tokens() > 0, "the cache is in use again"


def test_a_profile_is_a_trace_of_the_engine_and_the_stacks_of_both_workers(fleet: Fleet, profiles: Path) -> None:
    post(fleet, "/start_profile", {"profile_prefix": "run"})
    again = httpx.post(fleet.base_url + "/start_profile", timeout=60)
    assert (again.status_code, "already" in again.json()["error"]["message"]) == (400, True)
    post(fleet, "/v1/completions", {**ENDLESS, "max_tokens": 4})

    post(fleet, "/stop_profile")

    [trace] = profiles.glob("run_engine_0.*.pt.trace.json.gz")
    names = {event["name"] for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert any("attention" in name for name in names)
    fleet.wait_until(lambda: len(list(profiles.glob("run_worker_*.collapsed"))) == 2, 20)
    for file in profiles.glob("run_worker_*.collapsed"):
        assert "(worker.py:" in file.read_text()


def test_generating_from_rendered_ids_is_generating(fleet: Fleet) -> None:
    chat = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 5, "temperature": 0}
    direct = post(fleet, "/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2})

    rendered = post(fleet, "/v1/chat/completions/render", {**chat, "logprobs": True, "top_logprobs": 2})
    body = post(fleet, "/inference/v1/generate", rendered)
    text = post(fleet, "/inference/v1/generate", {**rendered, "output_mode": "text"})

    [choice] = body["choices"]
    assert post(fleet, "/detokenize", {"tokens": choice["token_ids"]})["prompt"].startswith(
        direct["choices"][0]["message"]["content"]
    )
    assert text["choices"][0]["text"] == direct["choices"][0]["message"]["content"]
    assert text["choices"][0]["token_ids"] == choice["token_ids"]
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"]) == direct["usage"]["completion_tokens"]
    of_ids, of_texts = choice["logprobs"]["content"], direct["choices"][0]["logprobs"]["content"]
    assert [entry["token_id"] for entry in of_ids] == choice["token_ids"]
    assert [entry["logprob"] for entry in of_ids] == pytest.approx([entry["logprob"] for entry in of_texts], abs=1e-3)
    assert {len(entry["top_logprobs"]) for entry in of_ids} == {2}


def test_the_real_tokenizer_and_configuration_are_shown(fleet: Fleet) -> None:
    info = httpx.get(fleet.base_url + "/tokenizer_info", timeout=20).json()
    server = httpx.get(fleet.base_url + "/server_info?config_format=json", timeout=20).json()

    assert info["eos_token"] == "<|im_end|>" and "<|im_start|>" in info["chat_template"]
    assert server["tokenfleet_config"]["server"]["workers"] == "2"
