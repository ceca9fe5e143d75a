"""Probes of the server's behaviour: simulated fleets are flooded, killed and drained."""

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx

from loadtests.chaos.fleet import SimFleet
from loadtests.peers import tokenfleet
from loadtests.peers.features.rig import HI, ROOT, Found, Json, Rig, graded, no, probe, until, url
from loadtests.processes import cpu_time


@probe("request id: accept X-Request-Id, echo header")
def _request_id(rig: Rig) -> Found:
    answer = rig.send(
        "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"x-request-id": "mine"}
    )
    return graded({"echoed": answer.headers.get("x-request-id") == "mine"})


def _running(fleet: SimFleet) -> float:
    return fleet.metric("vllm:num_requests_running")


@probe("abort on client disconnect (stream and non-stream)")
def _disconnect(rig: Rig) -> Found:
    seen = {}
    with rig.sim("--sim-step-ms", "50") as fleet:
        for stream in (True, False):
            body = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "stream": stream}
            try:
                with httpx.stream("POST", url(fleet, "/v1/completions"), json=body, timeout=1.0) as answer:
                    next(answer.iter_lines())
            except httpx.ReadTimeout:
                pass
            name = "stream" if stream else "whole"
            seen[f"{name}: nothing runs 5 s later"] = until(lambda: _running(fleet) == 0, 5.0)
    return graded(seen)


def _key_file(rig: Rig, text: str) -> str:
    path = rig.folder / "keys.toml"
    path.write_text(text)
    return str(path)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


ONE = {"prompt": "a", "max_tokens": 1}


@probe("API keys")
def _keys(rig: Rig) -> Found:
    keys = _key_file(rig, '[a]\nkey = "sk-a"\n[b]\nkey = "sk-b"\n')
    with rig.sim("--api-key-file", keys) as fleet:

        def status(**headers: str) -> int:
            return httpx.post(url(fleet, "/v1/completions"), json=ONE, headers=headers).status_code

        refused, taken = status(), [status(**_bearer(key)) for key in ("sk-a", "sk-b")]
        _key_file(rig, '[c]\nkey = "sk-c"\n')
        is_read_again = until(lambda: status(**_bearer("sk-c")) == 200, 5.0)
    return graded({"401 without": refused == 401, "several": taken == [200, 200], "a changed file": is_read_again})


@probe("TLS / mTLS / refresh on change")
def _tls(rig: Rig) -> Found:
    key, certificate = rig.folder / "key.pem", rig.folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    flags = ("--engine", "sim", "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with tokenfleet.start(rig.folder / "tls.log", flags=flags) as server:

        def answers() -> bool:
            try:
                secured = ssl.create_default_context(cafile=str(certificate))
                return httpx.get(f"https://127.0.0.1:{server.port}/health", verify=secured).status_code == 200
            except httpx.TransportError:
                return False

        is_served = until(answers, 180.0)
    help_text = subprocess.run([sys.executable, "-m", "ops", "serve", "--help"], capture_output=True, text=True).stdout
    return graded(
        {"https": is_served, "client certificates": "--ssl-ca-certs" in help_text,
         "refresh by itself (`tokenfleet reload` does it)": "--enable-ssl-refresh" in help_text}
    )  # fmt: skip


@probe("CORS")
def _cors(rig: Rig) -> Found:
    with rig.sim("--allowed-origins", "https://here.example") as fleet:
        headers = {"origin": "https://here.example", "access-control-request-method": "POST"}
        answer = httpx.options(url(fleet, "/v1/completions"), headers=headers)
    return graded({"preflight": answer.headers.get("access-control-allow-origin") == "https://here.example"})


@probe("max body")
def _body(rig: Rig) -> Found:
    with rig.sim("--max-body-bytes", "2000") as fleet:
        status = httpx.post(url(fleet, "/v1/completions"), json={"prompt": "a" * 3000}).status_code
    return graded({f"{status} beyond --max-body-bytes": status == 413})


def _flood(fleet: SimFleet, body: Json, count: int = 12, **headers: str) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            return await asyncio.gather(
                *(client.post(url(fleet, "/v1/completions"), json=body, headers=headers) for _ in range(count))
            )

    return asyncio.run(all_of_them())


def _shed(answers: list[httpx.Response]) -> Found:
    refused = [answer for answer in answers if answer.status_code == 503]
    has_hint = bool(refused) and all("retry-after" in answer.headers for answer in refused)
    return graded(
        {f"{len(refused)} of {len(answers)} refused with 503 and Retry-After": has_hint and len(refused) < len(answers)}
    )


SLOW = ("--sim-step-ms", "50", "--max-num-seqs", "1")


@probe("overload: cap on in-flight requests")
def _queue(rig: Rig) -> Found:
    with rig.sim(*SLOW, "--max-num-queued-reqs", "3") as fleet:
        return _shed(_flood(fleet, {"prompt": "a", "max_tokens": 8, "ignore_eos": True}))


@probe("overload: prompt-token backlog")
def _queued_tokens(rig: Rig) -> Found:
    with rig.sim(*SLOW, "--max-num-queued-tokens", "300") as fleet:
        return _shed(_flood(fleet, {"prompt": "word " * 100, "max_tokens": 8, "ignore_eos": True}))


@probe("per-tenant rate limits, fairness")
def _limits(rig: Rig) -> Found:
    keys = _key_file(rig, '[a]\nkey = "sk-a"\nrequests_per_minute = 2\n[b]\nkey = "sk-b"\n')
    with rig.sim("--api-key-file", keys) as fleet:
        over = [httpx.post(url(fleet, "/v1/completions"), json=ONE, headers=_bearer("sk-a")) for _ in range(4)]
        other = httpx.post(url(fleet, "/v1/completions"), json=ONE, headers=_bearer("sk-b"))
    return graded(
        {"429 with Retry-After beyond a key's limit": over[-1].status_code == 429 and "retry-after" in over[-1].headers,
         "another key is served": other.status_code == 200}
    )  # fmt: skip


@probe("request deadline / queue timeout")
def _deadline(rig: Rig) -> Found:
    with rig.sim(*SLOW) as fleet:
        body = {"prompt": "a", "max_tokens": 20, "ignore_eos": True}
        answers = _flood(fleet, body, 6, **{"x-request-deadline-ms": "1500"})
    late = sum(answer.status_code == 503 for answer in answers)
    return graded({f"X-Request-Deadline-Ms: {late} of 6 ended with 503 instead of waiting": 0 < late < 6})


@probe("multi-process API tier")
def _tier(rig: Rig) -> Found:
    with rig.sim(workers=3) as fleet:
        pids = fleet.pids("worker")
    return graded({f"{len(pids)} worker processes of --workers 3": len(pids) == 3})


@probe("balancing of connections over processes")
def _balance(rig: Rig) -> Found:
    with rig.sim(workers=2) as fleet:
        clients = [httpx.Client() for _ in range(24)]
        for client in clients:
            client.get(url(fleet, "/version"))

        def open_of(worker: int) -> float:
            return fleet.metric(f'tokenfleet:open_connections{{worker="{worker}"')

        until(lambda: open_of(0) + open_of(1) >= 24, 5.0)
        counts = [open_of(0), open_of(1)]
        for client in clients:
            client.close()
    return graded({f"24 connections on two workers: {counts[0]:.0f} and {counts[1]:.0f}": min(counts) >= 10})


@probe("core pinning, NUMA")
def _pinning(rig: Rig) -> Found:
    with rig.sim(workers=2) as fleet:
        masks = [os.sched_getaffinity(pid) for pid in fleet.pids("worker")]
    return graded({"workers are bound to cores of their own": len(masks[0]) == 1 and masks[0] != masks[1]})


@probe("tokenizer offload")
def _offload(rig: Rig) -> Found:
    with rig.sim() as fleet:
        [worker], [engine] = fleet.pids("worker"), fleet.pids("engine")
        before = [cpu_time([pid]).total_s for pid in (worker, engine)]
        for number in range(20):
            body = {"prompt": f"{number} many different words here " * 4000}
            httpx.post(url(fleet, "/tokenize"), json=body, timeout=60).raise_for_status()
        used = [cpu_time([pid]).total_s - since for pid, since in zip((worker, engine), before, strict=True)]
    return graded(
        {f"in worker processes: {used[0]:.2f} s of CPU there, {used[1]:.2f} s in the engine": used[0] > 3 * used[1]}
    )


LONG = {"role": "system", "content": " ".join(f"word{number}" for number in range(2000))}


def _tokenizer_cache_hits(rig: Rig, first: list[Json], second: list[Json]) -> float:
    """Segments of the second chat that were found, those of the first known."""
    with rig.sim() as fleet:

        def settled() -> float:
            time.sleep(1.2)  # workers count twice a second
            return fleet.metric("tokenfleet:tokenizer_cache_hits_total")

        counts = []
        for messages in (first, second):
            httpx.post(url(fleet, "/tokenize"), json={"messages": messages}, timeout=60).raise_for_status()
            counts.append(settled())
    return counts[1] - counts[0]


@probe("tokenization cache: whole prompt (L0)")
def _l0(rig: Rig) -> Found:
    hits = _tokenizer_cache_hits(rig, [LONG, *HI], [LONG, *HI])
    return graded({f"{hits:.0f} segments of a repeated chat found, its text is still rendered": hits > 0})


@probe("tokenization cache: prefix (L1 at special-token boundaries)")
def _l1(rig: Rig) -> Found:
    hits = _tokenizer_cache_hits(rig, [LONG, *HI], [LONG, {"role": "user", "content": "Something else entirely."}])
    return graded({f"{hits:.0f} segments of a chat that begins as another": hits > 0})


@probe("prefix caching in engine")
def _prefix(rig: Rig) -> Found:
    rig.complete("a shared beginning of many words " * 20 + "one")
    cached = rig.complete("a shared beginning of many words " * 20 + "two")["usage"]["prompt_tokens_details"][
        "cached_tokens"
    ]
    return graded({f"{cached} tokens of a shared beginning": cached > 0})


@probe("chunked prefill")
def _chunks(rig: Rig) -> Found:
    with rig.sim("--max-num-batched-tokens", "64") as fleet:
        body = {"prompt": "word " * 500, "max_tokens": 2, "ignore_eos": True}
        answer = httpx.post(url(fleet, "/v1/completions"), json=body, timeout=60)
    return graded(
        {"500 tokens in steps of 64": answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] >= 500}
    )


@probe("speculative decoding")
def _speculation(rig: Rig) -> Found:
    with rig.speculating(rig.folder) as server:
        body = {"prompt": "one two three four five " * 8, "max_tokens": 256, "temperature": 0, "ignore_eos": True}
        httpx.post(server.base_url + "/v1/completions", json=body, timeout=120).raise_for_status()
        text = httpx.get(server.base_url + "/metrics").text
    found = re.search(r"^vllm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)", text, re.MULTILINE)
    accepted = float(found[1]) if found else 0
    return Found(
        "partly" if accepted else "no",
        f"by prompt lookup, which needs no second model: {accepted:.0f} guessed tokens were right",
    )


@probe("multimodal")
def _multimodal(rig: Rig) -> Found:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    return no("400: " + rig.refusal("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})[:90])


@probe("DP inside one deployment")
def _engines(rig: Rig) -> Found:
    with rig.sim("--engines", "2", "--sim-step-ms", "50", "--max-num-seqs", "4") as fleet:
        started_s = time.monotonic()
        answers = _flood(fleet, {"prompt": "a", "max_tokens": 20, "ignore_eos": True}, 8)
        seconds = time.monotonic() - started_s
    is_shared = all(answer.status_code == 200 for answer in answers) and seconds < 1.8
    return graded({f"8 requests of a second each over two engines of 4 places in {seconds:.1f} s": is_shared})


@probe("prefix-aware routing")
def _affinity(rig: Rig) -> Found:
    with rig.sim("--engines", "2", "--sim-step-ms", "2") as fleet:
        cached = []
        for number in range(8):
            body = {"prompt": "one long shared beginning " * 60 + str(number), "max_tokens": 2}
            usage = httpx.post(url(fleet, "/v1/completions"), json=body).json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    hits = sum(count > 0 for count in cached[1:])
    return graded({f"{hits} of 7 prompts with a known beginning went where it is cached, of two engines": hits == 7})


def _stream_through(fleet: SimFleet, during: Callable[[], None]) -> tuple[int, str]:
    """Events with text of a stream of 60 tokens, in whose midst something is done; and its last finish reason."""
    body = {"prompt": "a b c", "max_tokens": 60, "ignore_eos": True, "temperature": 0, "stream": True}
    count, reason, done = 0, "", False
    with httpx.stream("POST", url(fleet, "/v1/completions"), json=body, timeout=60) as stream:
        for line in stream.iter_lines():
            count += '"text"' in line
            if count == 5 and not done:
                during()
                done = True
            found = re.search(r'"finish_reason":"(\w+)"', line)
            reason = found[1] if found else reason
    return count, reason


def _kill(fleet: SimFleet, role: str) -> None:
    os.kill(fleet.pids(role)[0], signal.SIGKILL)


@probe("engine death")
def _engine_death(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "20") as fleet:
        workers = fleet.pids("worker")
        _kill(fleet, "engine")
        is_back = until(lambda: _status(fleet) == 200, 30.0)
        are_kept = fleet.pids("worker") == workers
    return graded({"a new engine serves": is_back, "the workers stay": are_kept})


def _status(fleet: SimFleet) -> int:
    try:
        return httpx.post(url(fleet, "/v1/completions"), json=ONE, timeout=30).status_code
    except httpx.TransportError:
        return 0


@probe("API worker death")
def _worker_death(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "20", workers=2) as fleet:
        before = set(fleet.pids("worker"))
        _kill(fleet, "worker")
        is_back = until(lambda: len(set(fleet.pids("worker")) - before) == 1 and len(fleet.pids("worker")) == 2, 15.0)
        served = until(lambda: _status(fleet) == 200, 15.0)
    return graded({"a new one in its place": is_back, "requests are served": served})


@probe("resume of in-flight requests after engine fault")
def _resume(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "20") as fleet:
        count, reason = _stream_through(fleet, lambda: _kill(fleet, "engine"))
    return graded(
        {
            f"a stream of 60 tokens goes on over kill -9 of its engine and ends by {reason}": reason == "length"
            and count > 5
        }
    )


@probe("drain on SIGTERM")
def _drain(rig: Rig) -> Found:
    with rig.sim("--sim-step-ms", "50") as fleet:
        _, reason = _stream_through(fleet, lambda: os.kill(fleet.supervisor_pid, signal.SIGTERM))
    return graded({f"a stream that runs is finished ({reason}), without a flag": reason == "length"})


@probe("config file")
def _config(rig: Rig) -> Found:
    path = rig.folder / "fleet.toml"
    path.write_text('[model]\nserved_model_name = ["from-the-file"]\n')
    with rig.sim("--config", str(path)) as fleet:
        names = [model["id"] for model in httpx.get(url(fleet, "/v1/models")).json()["data"]]
    return graded({"TOML": names == ["from-the-file"]})


@probe("metrics across processes")
def _one_scrape(rig: Rig) -> Found:
    with rig.sim(workers=2) as fleet:
        for _ in range(10):
            httpx.post(url(fleet, "/v1/completions"), json=ONE).raise_for_status()  # each over a new connection

        def counts() -> set[str]:
            texts = [httpx.get(url(fleet, "/metrics")).text for _ in range(6)]
            return {line for text in texts for line in text.splitlines() if line.startswith("vllm:request_success_total")
                and 'finished_reason="length"' in line}  # fmt: skip

        is_one = until(lambda: len(found := counts()) == 1 and found.pop().endswith(" 10.0"), 10.0)
        series = counts()
    return graded(
        {"any worker's scrape counts all requests of two workers": is_one or {s.split()[-1] for s in series} == {"10"}}
    )


@probe("custom histogram buckets")
def _buckets(rig: Rig) -> Found:
    help_text = subprocess.run([sys.executable, "-m", "ops", "serve", "--help"], capture_output=True, text=True).stdout
    return graded({"a flag for them": "bucket" in help_text})


class _Collector(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012  # of all requests to the one collector of a run

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Json) -> None:
        pass


@probe("tracing OTLP")
def _tracing(rig: Rig) -> Found:
    collector = HTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with rig.sim("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_port}/v1/traces") as fleet:
        httpx.post(url(fleet, "/v1/completions"), json=ONE).raise_for_status()
        arrived = until(lambda: bool(_Collector.seen), 15.0)
    collector.shutdown()
    return graded({"spans over HTTP": arrived})


@probe("access log, JSON log, log of requests/outputs")
def _log(rig: Rig) -> Found:
    with rig.sim("--log-format", "json") as fleet:
        httpx.post(url(fleet, "/v1/completions"), json={"prompt": "SECRETWORD", "max_tokens": 1}).raise_for_status()
        has_line = until(
            lambda: '"request_id"' in fleet.log_path.read_text() or "prompt_tokens" in fleet.log_path.read_text(), 5.0
        )
        text = fleet.log_path.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return graded({"one line a request": has_line, "JSON": bool(lines), "prompts and outputs": "SECRETWORD" in text})


@probe("request record and replay")
def _replay(rig: Rig) -> Found:
    help_text = subprocess.run([sys.executable, "-m", "ops", "--help"], capture_output=True, text=True).stdout
    return graded({"a command for it": "replay" in help_text})


@probe("Helm chart")
def _chart(rig: Rig) -> Found:
    return graded({"charts/tokenfleet": (ROOT / "charts" / "tokenfleet" / "Chart.yaml").is_file()})


@probe("live terminal view")
def _top(rig: Rig) -> Found:
    with rig.sim() as fleet:
        command = [
            sys.executable,
            "-m",
            "ops",
            "top",
            "--once",
            "--json",
            "--url",
            f"http://127.0.0.1:{fleet.ops_port}",
        ]
        shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return graded({"`tokenfleet top`": len(shown.get("workers", [])) == 1})
