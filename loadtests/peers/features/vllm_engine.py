"""Probes of what the engine `vllm` alone can do: a fleet in front of a mock of vLLM's engine core. At best "partly", since the
other engines cannot."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from loadtests.peers import vllm_front_ends
from loadtests.peers.features.rig import HI, Found, Json, Rig, graded, probe
from loadtests.peers.server import Server


@contextmanager
def _bridged(rig: Rig) -> Iterator[Server]:
    token_ids = rig.folder / "ids.json"
    token_ids.write_text(json.dumps(list(range(1000, 1100))))
    with vllm_front_ends.start_bridged(
        rig.folder / "bridged.log", model=str(rig.folder / "model"), token_ids=token_ids, step_ms=1, workers=1,
        flags=("--server-dev-mode", "--lora-modules", "poems=/adapters/poems"),
    ) as server:  # fmt: skip
        server.wait_ready(120.0)
        yield server


def _ask(server: Server, path: str, body: Json = None, method: str = "POST") -> httpx.Response:
    return httpx.request(method, server.base_url + path, json=body, timeout=60)


def _with_vllm(seen: dict[str, bool]) -> Found:
    found = graded(seen)
    return Found("no" if found.answer == "no" else "partly", f"with --engine vllm: {found.finding}")


@probe("/sleep /wake_up /is_sleeping, /release_kv_cache_memory")
def _sleep(rig: Rig) -> Found:
    with _bridged(rig) as server:
        asks = [
            ("/sleep?level=1", "POST"),
            ("/is_sleeping", "GET"),
            ("/wake_up", "POST"),
            ("/release_kv_cache_memory", "POST"),
        ]
        return _with_vllm({path: _ask(server, path, method=method).status_code == 200 for path, method in asks})


@probe("/pause /resume /is_paused")
def _pause(rig: Rig) -> Found:
    with _bridged(rig) as server:
        asks = [("/pause?mode=keep", "POST"), ("/is_paused", "GET"), ("/resume", "POST")]
        return _with_vllm({path: _ask(server, path, method=method).status_code == 200 for path, method in asks})


@probe("LoRA")
def _lora(rig: Rig) -> Found:
    with _bridged(rig) as server:
        names = [card["id"] for card in _ask(server, "/v1/models", method="GET").json()["data"]]
        answer = _ask(server, "/v1/chat/completions", {"model": "poems", "messages": HI, "max_tokens": 3}).json()
        unknown = _ask(server, "/v1/chat/completions", {"model": "prose", "messages": HI})
    return _with_vllm(
        {
            "adapters of --lora-modules among the models": "poems" in names,
            "asked for by name": answer["model"] == "poems",
            "404 for any other": unknown.status_code == 404,
            "loaded while it runs": False,
        }
    )


@probe("P/D disaggregation")
def _disaggregation(rig: Rig) -> Found:
    told = {"do_remote_decode": True, "remote_block_ids": [1]}
    with _bridged(rig) as server:
        answer = _ask(server, "/v1/completions", {"prompt": "a", "max_tokens": 1, "kv_transfer_params": told}).json()
    return _with_vllm({"kv_transfer_params to the engine core and back": answer["kv_transfer_params"] == told})
