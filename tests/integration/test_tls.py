"""https: the same answers, streams that are whole, and mistakes that are one line."""

import json
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.fleet import Fleet, run_to_end

FLAGS = ("--engine", "sim", "--sim-step-ms", "1", "--workers", "2")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Key and self-signed certificate of 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture(scope="module")
def client(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    key, chain = certificate
    log = tmp_path_factory.mktemp("fleet") / "log"
    with Fleet(log, *FLAGS, "--ssl-keyfile", str(key), "--ssl-certfile", str(chain)) as fleet:
        fleet.wait_until(lambda: f"curl https://127.0.0.1:{fleet.port}" in fleet.log, 10)
        with httpx.Client(
            base_url=f"https://127.0.0.1:{fleet.port}", verify=ssl.create_default_context(cafile=chain), timeout=30
        ) as client:
            yield client


def test_clients_show_a_certificate_where_they_must(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    key, chain = certificate
    flags = (
        "--ssl-keyfile",
        str(key),
        "--ssl-certfile",
        str(chain),
        "--ssl-ca-certs",
        str(chain),
        "--ssl-cert-reqs",
        "2",
    )
    with Fleet(tmp_path / "log", *FLAGS, *flags) as fleet:
        url = f"https://127.0.0.1:{fleet.port}/v1/models"
        shown = ssl.create_default_context(cafile=chain)
        shown.load_cert_chain(chain, key)

        assert httpx.get(url, verify=shown, timeout=30).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=ssl.create_default_context(cafile=chain), timeout=30)


def test_a_stream_over_tls_is_what_the_whole_answer_is(client: httpx.Client) -> None:
    body = {"prompt": "a story", "max_tokens": 2000, "ignore_eos": True}
    whole = client.post("/v1/completions", json=body).json()

    text, last = "", {}
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                last = json.loads(line[6:])
                text += "".join(choice["text"] for choice in last["choices"])
            elif line:
                assert line == "data: [DONE]"

    assert whole["usage"]["completion_tokens"] == 2000
    assert text == whole["choices"][0]["text"]


def test_a_connection_serves_request_after_request(client: httpx.Client) -> None:
    for _ in range(20):
        with client.stream(
            "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 5, "stream": True}
        ) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert client.get("/v1/models").status_code == 200


def test_a_client_that_leaves_a_stream_frees_its_place(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())

    def num_running() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))

    for _ in range(500):
        if not num_running():
            break
        client.get("/livez")
    assert num_running() == 0


def test_plain_http_gets_no_answer(client: httpx.Client) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{client.base_url.host}:{client.base_url.port}/health", timeout=10)


def test_one_half_of_a_pair_is_one_line(certificate: tuple[Path, Path]) -> None:
    done = run_to_end("serve", "--engine", "sim", "--ssl-certfile", str(certificate[1]))

    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "go together" in done.stderr


def test_a_key_that_does_not_fit_is_one_line(certificate: tuple[Path, Path]) -> None:
    swapped = run_to_end(
        "serve", "--engine", "sim", "--ssl-certfile", str(certificate[0]), "--ssl-keyfile", str(certificate[1])
    )

    assert (swapped.returncode, swapped.stderr.count("\n")) == (2, 1) and "cannot be used" in swapped.stderr


def test_a_renewed_certificate_is_taken_up_by_a_reload(tmp_path: Path) -> None:
    key, chain = make_certificate(tmp_path)
    with Fleet(tmp_path / "log", *FLAGS, "--ssl-keyfile", str(key), "--ssl-certfile", str(chain)) as fleet:

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", fleet.port), timeout=10)

        old = shown()
        make_certificate(tmp_path)
        fleet.process.send_signal(signal.SIGHUP)

        fleet.wait_until(lambda: [shown() for _ in range(4)] == [chain.read_text()] * 4, 60)
        assert old != chain.read_text()
