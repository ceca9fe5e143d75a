import asyncio
import socket
import time

import httpx
import pytest

from ipc.exposition import CONTENT_TYPE, Exposition
from ipc.fleet_page import Cell, FleetPage, State
from ipc.metrics_page import create_metrics_segment
from ops.fleet_view import FleetView
from ops.listeners import ops_socket
from ops.ops_port import GRACE_S, OpsPort, OpsServer


@pytest.fixture
def page() -> FleetPage:
    """A fleet of one engine and two workers that could serve."""
    page = FleetPage(FleetPage.create_segment(2, 1).view)
    for cell in (page.broker, *page.engines, *page.workers):
        cell.begin_generation(1)
        cell.mark_alive(4711)
        cell.state = State.READY
    page.broker.num_peers = 1
    return page


def fleet_view(page: FleetPage) -> FleetView:
    return FleetView(page, [create_metrics_segment(str(number)).view for number in range(5)])


OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}


def ask(page: FleetPage, path: str, *, method: str = "GET", has_started: bool = True) -> httpx.Response:
    port = OpsPort(page, Exposition([]), fleet_view(page), heartbeat_timeout_s=1.0, engine_step_timeout_s=100.0)
    port.has_started = has_started

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(port), base_url="http://ops") as client:
            return await client.request(method, path, headers=OPENMETRICS)

    return asyncio.run(send())


def make_silent(cell: Cell, silent_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last beat was that long ago."""
    now_ns = time.monotonic_ns()
    with monkeypatch.context() as patch:
        patch.setattr("ipc.fleet_page.time.monotonic_ns", lambda: now_ns - int(silent_s * 1e9))
        cell.beat()


def test_a_fleet_that_could_serve_is_live_ready_and_started(page: FleetPage) -> None:
    assert [ask(page, path).status_code for path in ("/livez", "/readyz", "/startupz")] == [200, 200, 200]


def test_a_draining_fleet_is_live_but_not_ready(page: FleetPage) -> None:
    page.is_draining = True

    assert ask(page, "/livez").status_code == 200
    assert ask(page, "/readyz").status_code == 503
    assert ask(page, "/readyz").json()["reasons"] == ["the fleet is draining"]


@pytest.mark.parametrize("missing", ["engine", "broker", "workers"])
def test_without_one_kind_of_process_nothing_can_be_served(page: FleetPage, missing: str) -> None:
    cells = {"engine": page.engines, "broker": [page.broker], "workers": page.workers}[missing]
    for cell in cells:
        cell.mark_dead()

    assert ask(page, "/readyz").status_code == 503
    assert ask(page, "/livez").status_code == 200  # being replaced, which a restart of everything would not hasten


def test_one_of_two_workers_is_enough(page: FleetPage) -> None:
    page.workers[0].mark_dead()

    assert ask(page, "/readyz").status_code == 200
    assert ask(page, "/readyz").json()["workers_ready"] == 1


def test_a_silent_worker_is_not_live_and_named(page: FleetPage, monkeypatch: pytest.MonkeyPatch) -> None:
    make_silent(page.workers[1], 5.0, monkeypatch)

    assert ask(page, "/livez").status_code == 503
    assert "worker 1" in ask(page, "/livez").json()["reasons"][0]


def test_a_long_step_of_the_engine_is_no_silence_until_the_watchdog_says_so(
    page: FleetPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_silent(page.engines[0], 50.0, monkeypatch)
    assert ask(page, "/livez").status_code == 200

    make_silent(page.engines[0], 150.0, monkeypatch)
    assert ask(page, "/livez").status_code == 503


def test_the_start_shows_how_far_it_is_and_is_done_for_good_once_done(page: FleetPage) -> None:
    page.engines[0].state = State.STARTING
    page.engines[0].progress_permille = 420

    starting = ask(page, "/startupz", has_started=False)
    assert starting.status_code == 503 and starting.json()["progress"] == 0.42
    assert ask(page, "/startupz", has_started=True).status_code == 200


def test_metrics_are_the_old_text_format_whatever_is_asked_for(page: FleetPage) -> None:
    assert ask(page, "/metrics").headers["content-type"] == CONTENT_TYPE


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/models", 404), ("POST", "/readyz", 405)])
def test_nothing_else_is_served(page: FleetPage, method: str, path: str, status: int) -> None:
    assert ask(page, path, method=method).status_code == status


def test_an_answer_that_nobody_takes_does_not_keep_the_server(page: FleetPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scraper that is frozen in the middle of one."""
    exposition = Exposition([])
    monkeypatch.setattr(exposition, "text", lambda: bytes(32 * 1024 * 1024))  # more than any socket's buffers hold
    port = OpsPort(page, exposition, fleet_view(page), heartbeat_timeout_s=1.0, engine_step_timeout_s=100.0)
    listener = ops_socket("127.0.0.1", 0)

    async def stop_meanwhile() -> float:
        server = OpsServer(port)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nhost: ops\r\n\r\n")
            while not server.server_state.total_requests:
                await asyncio.sleep(0.01)
            stopped_s = time.monotonic()
            server.stop()
            await serving
            return time.monotonic() - stopped_s

    assert asyncio.run(asyncio.wait_for(stop_meanwhile(), 20)) < GRACE_S + 5
