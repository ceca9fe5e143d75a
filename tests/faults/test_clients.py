"""Clients that misbehave: they get what they deserve, and everybody else is served."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.chaos import slow_readers
from loadtests.chaos.client import Seen, complete
from tests.integration.fleet import Fleet

BODY = {"prompt": "hi", "max_tokens": 5, "ignore_eos": True, "stream": True}
REQUEST = json.dumps({**BODY, "stream": False}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    log_path = tmp_path_factory.mktemp("clients") / "log"
    with Fleet(log_path, str(model_folder), "--engine", "sim", "--workers", "1", "--sim-step-ms", "5") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def impatient_fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A client has a second for what it has to say."""
    log_path = tmp_path_factory.mktemp("impatient") / "log"
    flags = ("--engine", "sim", "--workers", "1", "--timeout-keep-alive-s", "1", "--sim-step-ms", "10")
    with Fleet(log_path, str(model_folder), *flags) as fleet:
        yield fleet


def connect(fleet: Fleet) -> socket.socket:
    return socket.create_connection(("127.0.0.1", fleet.port), timeout=10)


def serves(fleet: Fleet) -> bool:
    return asyncio.run(complete(fleet.port, BODY, Seen())).ending == "finished"


def values_of(fleet: Fleet, *names: str) -> list[float]:
    with socket.create_connection(("127.0.0.1", fleet.ops_port), timeout=5) as probe:
        probe.sendall(b"GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        text = b"".join(iter(lambda: probe.recv(65536), b"")).decode()
    beginnings = tuple(name + "{" for name in names)
    return [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(beginnings)]


def is_idle(fleet: Fleet) -> bool:
    """No sequence is left in the engine."""
    values = values_of(fleet, "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return bool(values) and sum(values) == 0


def num_steps(fleet: Fleet) -> float:
    return sum(values_of(fleet, "tokenfleet:engine_step_seconds_count"))


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS hello
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_http_is_answered_with_400_or_an_end(fleet: Fleet, rubbish: bytes) -> None:
    with connect(fleet) as client:
        client.sendall(rubbish)
        answer = client.recv(4096)

    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert serves(fleet)


def test_pipelined_requests_are_answered_in_order(fleet: Fleet) -> None:
    bodies = [json.dumps({"prompt": "hi", "max_tokens": n, "ignore_eos": True}).encode() for n in (9, 1, 4)]
    with connect(fleet) as client:
        client.sendall(b"".join(HEAD % len(body) + body for body in bodies))
        received = b""
        while received.count(b'"completion_tokens"') < 3:
            piece = client.recv(65536)
            assert piece, received
            received += piece

    places = [received.find(b'"completion_tokens":%d' % number) for number in (9, 1, 4)]
    assert places == sorted(places) and places[0] > 0


@pytest.mark.parametrize("sent", ["half a head", "half a body", "all", "first event"])
def test_a_client_that_leaves_in_any_phase_leaves_nothing_behind(fleet: Fleet, sent: str) -> None:
    body = json.dumps(
        {"prompt": "hi", "max_tokens": 1500, "ignore_eos": True, "stream": sent == "first event"}
    ).encode()
    request = HEAD % len(body) + body
    size = {"half a head": 30, "half a body": len(request) - 10}.get(sent, len(request))
    for _ in range(20):
        with connect(fleet) as client:
            client.sendall(request[:size])
            if sent == "first event":
                client.recv(1)

    fleet.wait_until(lambda: is_idle(fleet), 10)
    assert serves(fleet)


def test_the_kv_of_a_client_that_left_is_freed_within_two_steps(model_folder: Path, tmp_path: Path) -> None:
    """As many as it takes: one that runs when the client leaves, one behind it, and one that a scrape may miss."""
    body = json.dumps({"prompt": "hi", "max_tokens": 1500, "ignore_eos": True, "stream": True}).encode()
    flags = ("--engine", "sim", "--workers", "1", "--sim-step-ms", "200")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:
        with connect(fleet) as client:
            client.sendall(HEAD % len(body) + body)
            client.recv(65536)
            num_before = num_steps(fleet)
        fleet.wait_until(lambda: is_idle(fleet), 10)

        assert num_steps(fleet) - num_before <= 3


def test_hundreds_of_idle_connections_cost_nobody_anything(fleet: Fleet) -> None:
    clients = [connect(fleet) for _ in range(500)]
    try:
        for client in clients[:20]:
            client.sendall(HEAD % len(REQUEST) + REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")

        assert serves(fleet) and fleet.probe("/livez") == 200
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("phase", ["first head", "later head", "body", "chunked body"])
def test_a_client_that_never_finishes_what_it_says_is_cut_off(impatient_fleet: Fleet, phase: str) -> None:
    chunked = b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
    begin, more = {
        "first head": (b"GET /v1/models HTTP/1.1\r\nx-a: ", b"a"),
        "later head": (b"GET /v1/models HTTP/1.1\r\nhost: test\r\n\r\nGET /v1/models HTTP/1.1\r\nx-a: ", b"a"),
        "body": (HEAD % 1000, b" "),
        "chunked body": (chunked, b"1\r\n \r\n"),
    }[phase]
    with connect(impatient_fleet) as silent, connect(impatient_fleet) as loris:
        started_s = time.monotonic()
        loris.sendall(begin)
        loris.settimeout(0.1)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started_s < 8:
                loris.sendall(more)
                with contextlib.suppress(TimeoutError):
                    if not loris.recv(65536):
                        break

        silent.settimeout(5)
        assert silent.recv(100) == b""
        assert time.monotonic() - started_s < 6 and serves(impatient_fleet)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_head_without_end_is_refused(fleet: Fleet, is_first: bool) -> None:
    with connect(fleet) as client:
        if not is_first:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: test\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /v1/models HTTP/1.1\r\nx-a: ")
        answer, num_sent = b"", 0
        client.settimeout(0.05)
        with contextlib.suppress(ConnectionError):
            while not answer and num_sent < 1 << 20:
                num_sent += client.send(b"a" * 4096)
                with contextlib.suppress(TimeoutError):
                    answer = client.recv(4096)

    assert (answer == b"" or answer.startswith(b"HTTP/1.1 431")) and num_sent < 1 << 19
    assert serves(fleet)


def test_a_pipelined_body_may_wait_as_long_as_the_answer_before_it(impatient_fleet: Fleet) -> None:
    """Longer than the deadline: the server does not read meanwhile, and the client is not to blame."""
    first = json.dumps({"prompt": "hi", "max_tokens": 250, "ignore_eos": True, "stream": True}).encode()
    with connect(impatient_fleet) as client:
        client.sendall(HEAD % len(first) + first + HEAD % len(REQUEST) + REQUEST[:5])
        received = b""
        client.settimeout(15)
        while b"[DONE]" not in received:
            received += (piece := client.recv(65536))
            assert piece, received[-300:]
        client.sendall(REQUEST[5:])
        while b'"completion_tokens"' not in received:
            received += (piece := client.recv(65536))
            assert piece, received[-300:]


def test_slow_readers_are_held_in_little_memory_and_then_cut_while_others_are_served(
    model_folder: Path, tmp_path: Path
) -> None:
    result = slow_readers.measure(100, 5, 1.0, tmp_path / "log", step_ms=4)

    assert result.num_cut == 100
    assert result.growth_mb < 20, "64 KiB each, and what measuring adds"
    assert len(result.seen) > 10 and {one.ending for one in result.seen} == {"finished"}


def test_a_worker_that_dies_at_every_start_is_tried_ever_less_often_while_the_others_serve(
    model_folder: Path, tmp_path: Path
) -> None:

    flags = ("--engine", "sim", "--workers", "2", "--sim-step-ms", "5")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:
        for _ in range(3):
            fleet.wait_until(lambda: len(fleet.pids("worker 0")) == 1, 10)
            os.kill(fleet.pids("worker 0")[0], signal.SIGKILL)
            assert serves(fleet)

        waited_s = fleet.wait_until(lambda: len(fleet.pids("worker 0")) == 1, 10)

        assert waited_s > 0.5, "the third death in a row is not answered at once"
