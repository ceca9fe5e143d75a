"""Probes of the routes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx

from loadtests.peers.features.rig import HI, NOT_SERVED, Found, Probe, Rig, graded, no, probe, until, url, yes

ROUTES: dict[str, tuple[str, ...]] = {
    "POST /v1/chat/completions/batch": ("POST /v1/chat/completions/batch",),
    "POST /v1/responses/render": ("POST /v1/responses/render",),
    "/score, /rerank, /v1/rerank, /v2/rerank, /v2/embed": (
        "POST /score", "POST /rerank", "POST /v1/rerank", "POST /v2/rerank", "POST /v2/embed"),
    "/v1/audio/transcriptions, /translations": ("POST /v1/audio/transcriptions", "POST /v1/audio/translations"),
    "WS /v1/realtime": ("GET /v1/realtime",),
    "/cohere/v2/chat; ollama": ("POST /cohere/v2/chat", "POST /api/chat"),
    "POST …/derender": ("POST /v1/completions/derender", "POST /v1/chat/completions/derender"),
    "GET /ping, POST /ping, /invocations (SageMaker)": ("GET /ping", "POST /ping", "POST /invocations"),
    "GET /kv_event_sources (where each rank publishes KV events)": ("GET /kv_event_sources",),
    "/collective_rpc, weight-update set, /get_world_size": (
        "POST /collective_rpc", "POST /update_weights", "GET /get_world_size"),
    "/v1/load_lora_adapter, /unload": ("POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
    "/scale_elastic_ep, /fault_tolerance/*": ("POST /scale_elastic_ep", "POST /fault_tolerance/apply"),
    "/v1/decisions, /v1/systemone (new in 0.33)": ("POST /v1/decisions", "POST /v1/systemone"),
    "/workers CRUD, /parse/function_call, /parse/reasoning, /wasm, /v1/conversations": (
        "GET /workers", "POST /parse/function_call", "POST /parse/reasoning", "GET /wasm", "POST /v1/conversations"),
    "batch files": ("POST /v1/batches", "POST /v1/files"),
}  # fmt: skip


def _routes(routes: tuple[str, ...]) -> Probe:
    def probe_them(rig: Rig) -> Found:
        statuses = {route: rig.send(*route.split(" ")).status_code for route in routes}
        if all(status in NOT_SERVED for status in statuses.values()):
            return no(", ".join(f"{route}: {status}" for route, status in statuses.items()))
        return graded({route: status not in NOT_SERVED for route, status in statuses.items()})

    return probe_them


for _feature, _paths in ROUTES.items():
    probe(_feature)(_routes(_paths))


@probe("POST /v1/chat/completions")
def _chat(rig: Rig) -> Found:
    whole = rig.chat()["choices"][0]["message"]["content"]
    events = rig.events("/v1/chat/completions", {"messages": HI, "temperature": 0, "max_tokens": 8})
    streamed = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    return graded({"whole": bool(whole), "streamed with the same text": streamed == whole})


@probe("POST /v1/completions")
def _completions(rig: Rig) -> Found:
    whole = rig.complete()["choices"][0]["text"]
    events = rig.events("/v1/completions", {"prompt": "One, two,", "temperature": 0, "max_tokens": 8})
    streamed = "".join(choice["text"] for event in events for choice in event["choices"])
    return graded({"whole": bool(whole), "streamed with the same text": streamed == whole})


@probe("GET /v1/models (+ /v1/models/{id})")
def _models(rig: Rig) -> Found:
    [model] = rig.send("GET", "/v1/models").json()["data"]
    one = rig.send("GET", f"/v1/models/{model['id']}")
    return graded({"list": bool(model["id"]), "one by its id": one.status_code == 200})


@probe("POST /v1/responses, GET/{id}, /{id}/cancel")
def _responses(rig: Rig) -> Found:
    made = rig.post("/v1/responses", {"input": "Say hello.", "temperature": 0, "max_output_tokens": 16})
    kept = rig.send("GET", f"/v1/responses/{made['id']}").json()
    cancel = rig.send("POST", f"/v1/responses/{made['id']}/cancel").status_code
    return graded({"create": bool(made["output"]), "get": kept["output"] == made["output"], "cancel": cancel != 404})


@probe("POST /v1/messages, /count_tokens (Anthropic)")
def _messages(rig: Rig) -> Found:
    made = rig.post("/v1/messages", {"model": "m", "messages": HI, "max_tokens": 8})
    used = sum(made["usage"].get(kind) or 0 for kind in ("input_tokens", "cache_read_input_tokens"))
    counted = rig.post("/v1/messages/count_tokens", {"model": "m", "messages": HI})
    return graded(
        {"messages": made["type"] == "message" and bool(made["content"]),
         "count_tokens, as many as used": counted["input_tokens"] == used}
    )  # fmt: skip


@probe("POST /v1/embeddings, /pooling, /classify")
def _embeddings(rig: Rig) -> Found:
    vector = rig.post("/v1/embeddings", {"input": "hello"})["data"][0]["embedding"]
    return graded(
        {
            "embeddings": abs(sum(x * x for x in vector) - 1) < 0.01,
            "pooling": rig.send("POST", "/pooling", json={}).status_code not in NOT_SERVED,
            "classify": rig.send("POST", "/classify", json={}).status_code not in NOT_SERVED,
        }
    )


@probe("POST /tokenize, /detokenize")
def _tokenize(rig: Rig) -> Found:
    ids = rig.post("/tokenize", {"prompt": "Hello wörld", "add_special_tokens": False})["tokens"]
    return graded({"there and back": rig.post("/detokenize", {"tokens": ids})["prompt"] == "Hello wörld"})


@probe("GET /tokenizer_info")
def _tokenizer_info(rig: Rig) -> Found:
    return graded({"with the flag, as vLLM": bool(rig.send("GET", "/tokenizer_info").json()["chat_template"])})


@probe("POST /v1/completions/render, /v1/chat/completions/render (returns token ids)")
def _render(rig: Rig) -> Found:
    chat = rig.post("/v1/chat/completions/render", {"messages": HI})["token_ids"]
    [text] = rig.post("/v1/completions/render", {"prompt": "One"})
    return graded(
        {"chats, the ids of /tokenize": chat == rig.post("/tokenize", {"messages": HI})["tokens"],
         "completions": text["token_ids"] == rig.post("/tokenize", {"prompt": "One"})["tokens"]}
    )  # fmt: skip


@probe("POST /inference/v1/generate (token in, token out)")
def _generate(rig: Rig) -> Found:
    ids = rig.post("/tokenize", {"messages": HI})["tokens"]
    sampling = {"temperature": 0, "max_tokens": 8}
    made = rig.post("/inference/v1/generate", {"token_ids": ids, "sampling_params": sampling})
    text = rig.post("/detokenize", {"tokens": made["choices"][0]["token_ids"]})["prompt"]
    return graded({"ids of the chat's own text": text.startswith(rig.chat()["choices"][0]["message"]["content"])})


@probe("GET /health")
def _health(rig: Rig) -> Found:
    with rig.sim() as fleet:
        fine = httpx.get(url(fleet, "/health")).status_code
        for pid in fleet.pids("engine"):
            os.kill(pid, signal.SIGKILL)
        is_told = until(lambda: httpx.get(url(fleet, "/health")).status_code == 503, 5.0)
    return graded({"200 while it can generate": fine == 200, "503 while its engine is gone": is_told})


@probe("readiness: /ready /readyz /readiness /liveness")
def _probes(rig: Rig) -> Found:
    return graded({path: rig.send("GET", path).status_code == 200 for path in ("/readyz", "/livez", "/startupz")})


@probe("GET /version")
def _version(rig: Rig) -> Found:
    return yes(f"version {rig.send('GET', '/version').json()['version']}")


@probe("GET /load (in-flight count)")
def _load(rig: Rig) -> Found:
    return graded({"server_load": isinstance(rig.send("GET", "/load").json()["server_load"], int)})


@probe("GET /metrics")
def _metrics(rig: Rig) -> Found:
    answer = rig.send("GET", "/metrics")
    return graded(
        {"text 0.0.4": "version=0.0.4" in answer.headers["content-type"],
         "vLLM's names": "vllm:num_requests_running" in answer.text}
    )  # fmt: skip


@probe("POST /abort_requests, /inference/v1/abort_requests")
def _abort(rig: Rig) -> Found:
    def ended_by(path: str) -> str:
        body = {"prompt": "One,", "max_tokens": 2000, "ignore_eos": True, "request_id": "to-abort", "stream": True}
        with httpx.stream("POST", rig.server.base_url + "/v1/completions", json=body, timeout=60) as stream:
            reason = ""
            for number, line in enumerate(stream.iter_lines()):
                if number == 0:
                    names = [json.loads(line[6:])["id"], "to-abort"]
                    rig.send("POST", path, json={"request_ids": names})
                found = re.search(r'"finish_reason":"(\w+)"', line)
                reason = found[1] if found else reason
        return reason

    return graded({path: ended_by(path) == "abort" for path in ("/abort_requests", "/inference/v1/abort_requests")})


@probe("/reset_prefix_cache (/flush_cache)")
def _reset(rig: Rig) -> Found:
    prompt = "a cached prompt " * 60
    rig.complete(prompt)
    before = rig.complete(prompt)["usage"]["prompt_tokens_details"]["cached_tokens"]
    rig.send("POST", "/reset_prefix_cache").raise_for_status()
    after = rig.complete(prompt)["usage"]["prompt_tokens_details"]["cached_tokens"]
    return graded({f"{before} cached tokens before, {after} after": before > 0 and after == 0})


@probe("/start_profile /stop_profile")
def _profile(rig: Rig) -> Found:
    statuses = [rig.send("POST", "/start_profile").status_code]
    rig.chat()
    statuses.append(rig.send("POST", "/stop_profile").status_code)
    has_files = until(lambda: len(list((rig.folder / "profiles").rglob("*.*"))) > 1)
    return graded({"started and stopped": statuses == [200, 200], "a trace and the workers' stacks": has_files})


@probe("/server_info")
def _server_info(rig: Rig) -> Found:
    return graded({"the configuration": len(rig.send("GET", "/server_info").text) > 500})


def _answers_http2(rig: Rig) -> bool:
    with socket.create_connection(("127.0.0.1", rig.server.port), timeout=5) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        return connection.recv(16)[3:4] == b"\x04"  # a SETTINGS frame


@probe("gRPC")
def _grpc(rig: Rig) -> Found:
    return graded({"answers HTTP/2's preface, which gRPC needs": _answers_http2(rig)})


@probe("HTTP/2")
def _http2(rig: Rig) -> Found:
    return graded({"answers its preface": _answers_http2(rig)})


@probe("Unix socket listener")
def _uds(rig: Rig) -> Found:
    path = rig.folder / "socket"
    command = [sys.executable, "-m", "ops", "serve", "--engine", "sim", "--workers", "1", "--uds", str(path)]
    with (rig.folder / "uds.log").open("wb") as log:
        process = subprocess.Popen([*command, "--ops-port", "0"], stdout=log, stderr=log)
    try:
        client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://fleet")

        def is_up() -> bool:
            try:
                return client.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        assert until(is_up, 180.0)
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        return graded({"a completion over it": answer.status_code == 200})
    finally:
        process.terminate()
        process.wait(30)


@probe("OpenAPI docs")
def _openapi(rig: Rig) -> Found:
    document = rig.send("GET", "/openapi.json").json()
    page = rig.send("GET", "/docs").text
    return graded({"/openapi.json": document["openapi"].startswith("3."), "/docs, offline": "https://" not in page})
