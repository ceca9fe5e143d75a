"""What an operator relies on while a fleet starts, hangs and stops."""

import json
import os
import signal
import socket
import threading
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

import pytest

from loadtests.processes import descendants
from tests.integration.fleet import Fleet

SIM = ("--engine", "sim", "--workers", "1")


class Stream(threading.Thread):
    """One streamed completion of `num_tokens`; `body` is all that came."""

    def __init__(self, fleet: Fleet, num_tokens: int) -> None:
        super().__init__()
        self.body = b""
        self.has_begun = False
        request = {"prompt": "hi", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
        self._request = urllib.request.Request(
            fleet.base_url + "/v1/completions", json.dumps(request).encode(), {"content-type": "application/json"}
        )
        self.start()

    def run(self) -> None:
        try:
            with urllib.request.urlopen(self._request, timeout=30) as response:
                while piece := response.read1():
                    self.body += piece
                    self.has_begun = True
        except (OSError, HTTPException):
            pass  # cut: the body tells


def test_a_relative_model_path_is_found_from_any_folder(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").symlink_to(model_folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)

    with Fleet(tmp_path / "log", "./mine", *SIM) as fleet:
        assert fleet.probe("/readyz") == 200


def test_a_stopped_fleet_finishes_its_streams_and_still_serves_in_the_pre_stop_window(
    model_folder: Path, tmp_path: Path
) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--pre-stop-s", "1") as fleet:
        running = Stream(fleet, num_tokens=100)
        fleet.wait_until(lambda: running.has_begun, 10)

        fleet.process.send_signal(signal.SIGTERM)
        fleet.wait_until(lambda: fleet.probe("/readyz") == 503, 0.5)
        late = Stream(fleet, num_tokens=3)
        code = fleet.process.wait(20)

        assert fleet.probe("/livez") == 0 and code == 0
        for stream in (running, late):
            stream.join()
            assert stream.body.endswith(b"data: [DONE]\n\n")


def test_a_draining_fleet_refuses_new_clients_instead_of_letting_them_wait(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM) as fleet:
        running = Stream(fleet, num_tokens=150)
        fleet.wait_until(lambda: running.has_begun, 10)

        fleet.process.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", fleet.port), timeout=2).close()
            except ConnectionRefusedError:
                return True
            return False

        fleet.wait_until(is_refused, 2)
        assert not running.body.endswith(b"data: [DONE]\n\n"), "refused only when all was over"
        running.join()
        assert running.body.endswith(b"data: [DONE]\n\n")
        assert fleet.process.wait(10) == 0


def test_a_fleet_that_was_frozen_as_a_whole_goes_on_as_if_nothing_had_been(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--heartbeat-timeout-s", "2") as fleet:
        pids = descendants(fleet.process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # what is tested is the passing of time
        for pid in pids:  # the supervisor first: it sees the others silent
            os.kill(pid, signal.SIGCONT)

        fleet.wait_until(fleet.is_ready, 5)
        Stream(fleet, num_tokens=50).join()

        assert descendants(fleet.process.pid) == pids and "stuck" not in fleet.log


def test_a_worker_that_dies_with_its_zygote_comes_back_with_the_next_one(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM) as fleet:
        [zygote], [worker] = fleet.pids("zygote"), fleet.pids("worker")

        os.kill(zygote, signal.SIGSTOP)  # it will not answer for the worker
        os.kill(worker, signal.SIGKILL)
        fleet.wait_until(lambda: 'process died child="worker 0"' in fleet.log, 5)
        os.kill(zygote, signal.SIGKILL)

        fleet.wait_until(fleet.is_ready, 20)
        assert fleet.pids("worker") != [worker] and fleet.pids("zygote") != [zygote]


def test_probes_answer_within_100_ms_while_the_worker_is_saturated(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--sim-step-ms", "0") as fleet:
        streams = [Stream(fleet, num_tokens=1500) for _ in range(50)]
        fleet.wait_until(lambda: all(stream.has_begun for stream in streams), 20)

        waits_s = []
        for probe in ("/livez", "/readyz", "/startupz") * 10:
            started_s = time.monotonic()
            assert fleet.probe(probe) == 200
            waits_s.append(time.monotonic() - started_s)

        assert sorted(waits_s)[len(waits_s) // 2] < 0.1
        for stream in streams:
            stream.join()


def test_a_second_signal_ends_the_fleet_at_once_and_says_so(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM) as fleet:
        running = Stream(fleet, num_tokens=1500)
        fleet.wait_until(lambda: running.has_begun, 10)

        fleet.process.send_signal(signal.SIGTERM)
        fleet.wait_until(lambda: fleet.probe("/readyz") == 503, 2)
        fleet.process.send_signal(signal.SIGTERM)
        started_s = time.monotonic()
        code = fleet.process.wait(10)

        assert code == 130 and time.monotonic() - started_s < 5
        running.join()
        assert b"[DONE]" not in running.body


def test_a_frozen_worker_is_replaced(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--heartbeat-timeout-s", "1") as fleet:
        [frozen] = fleet.pids("worker")

        os.kill(frozen, signal.SIGSTOP)

        fleet.wait_until(lambda: fleet.pids("worker") not in ([], [frozen]), 10)
        fleet.wait_until(fleet.is_ready, 10)
        assert "process is stuck" in fleet.log


def test_probes_and_signals_are_answered_while_the_model_is_converted(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fleet = Fleet(tmp_path / "log", "--cache-dir", str(cache), *SIM)
    with fleet.started():
        fleet.wait_until(lambda: "converting model" in fleet.log, 20)
        assert fleet.probe("/livez") == 200 and fleet.probe("/startupz") == 503

        fleet.process.send_signal(signal.SIGTERM)

        assert fleet.process.wait(10) == 0
        assert not list(cache.glob(".*")), "half a folder was left"


def test_a_conversion_that_is_killed_says_by_what(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "log", "--cache-dir", str(tmp_path / "cache"), *SIM)
    with fleet.started():
        fleet.wait_until(lambda: "converting model" in fleet.log, 20)

        os.kill(fleet.pids("prepare")[0], signal.SIGKILL)

        assert fleet.process.wait(10) == 1
        assert 'conversion failed signal=SIGKILL hint="out of memory?"' in fleet.log


def test_an_engine_that_gives_up_is_stood_in_for_until_the_last_one_gives_up(
    model_folder: Path, tmp_path: Path
) -> None:
    flags = (*SIM, "--engines", "2", "--restart-backoff-max-s", "0.1")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:
        fleet.wait_until(lambda: engine_states(fleet) == ["ready", "ready"], 10)
        killed: set[int] = set()

        def kill_starting(role: str) -> None:
            for pid in set(fleet.pids(role)) - killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

        def has_given_up() -> bool:
            kill_starting("engine 1")
            return "a process cannot start: the fleet serves on" in fleet.log

        def has_ended() -> bool:
            kill_starting("engine 0")
            return fleet.process.poll() is not None

        fleet.wait_until(has_given_up, 30)
        after = Stream(fleet, num_tokens=50)
        after.join()

        assert after.body.endswith(b"data: [DONE]\n\n") and fleet.is_ready()
        assert engine_states(fleet) == ["ready", "dead"]
        with urllib.request.urlopen(fleet.ops_url + "/metrics", timeout=5) as response:
            metrics = response.read().decode()
        assert 'tokenfleet:processes{role="engine"} 2.0' in metrics
        assert 'tokenfleet:processes_ready{role="engine"} 1.0' in metrics

        fleet.wait_until(has_ended, 30)
        assert fleet.process.returncode == 1 and 'a process cannot start child="engine 0"' in fleet.log


def engine_states(fleet: Fleet) -> list[str]:
    with urllib.request.urlopen(fleet.ops_url + "/fleet", timeout=5) as response:
        return [process["state"] for process in json.load(response)["processes"] if process["role"] == "engine"]


def test_an_engine_that_dies_at_every_start_stops_the_fleet(model_folder: Path, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "log", str(model_folder), *SIM, "--restart-backoff-max-s", "0.1")
    with fleet.started():
        killed: set[int] = set()

        def kill_starting_engine() -> bool:
            for pid in fleet.pids("engine"):
                if pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            return fleet.process.poll() is not None

        fleet.wait_until(kill_starting_engine, 30)

        assert fleet.process.returncode == 1
        assert len(killed) == 5 and 'a process cannot start child="engine 0"' in fleet.log
