"""`tokenfleet top` on a real fleet."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import msgspec

from loadtests.background_load import BackgroundLoad
from ops.top import Screen, fetch
from tests.integration.fleet import Fleet, environment, post_json, run_to_end

ENGINE = ("--engine", "sim", "--sim-step-ms", "1", "--workers", "2")


def test_one_look_shows_every_process_and_the_slowest_request(tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *ENGINE) as fleet:
        post_json(f"{fleet.base_url}/v1/completions", {"prompt": "one two three", "max_tokens": 40})
        fleet.wait_until(lambda: bool(fetch(fleet.ops_url).slowest), 10)  # at the worker's next beat

        once = run_to_end("top", "--url", fleet.ops_url, "--once", "--json", "--interval", "0.2")
        found = json.loads(once.stdout)
        picture = tmp_path / "top.svg"
        drawn = run_to_end("top", "--url", fleet.ops_url, "--svg", str(picture), "--interval", "0.2")

    assert [row["state"] for row in found["workers"]] == ["ready", "ready"]
    assert [row["state"] for row in found["engines"]] == ["ready"]
    assert found["slowest"][0]["completion_tokens"] == 40
    assert found["slowest"][0]["decode_ms"] > 0
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_text().startswith("<svg")


def test_under_load_every_row_has_its_figures(tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", *ENGINE) as fleet, BackgroundLoad(fleet.port):
        fleet.wait_until(lambda: len(fetch(fleet.ops_url).slowest) > 8, 20)

        once = run_to_end("top", "--url", fleet.ops_url, "--once", "--json", "--interval", "1.5")
        found = msgspec.json.decode(once.stdout, type=Screen)
        live = live_screens(fleet.ops_url)

    for worker in found.workers:
        assert min(worker.requests_per_s, worker.tokens_per_s, worker.loop_lag_ms, worker.cpu_share) > 0
        assert worker.cache_hit_share is not None and worker.cache_hit_share > 0.5, "the documents are the same"
        assert 0 <= worker.ring_fill_share < 1 and worker.open_connections > 0
    (engine,) = found.engines
    assert engine.step_ms is not None and engine.step_ms > 0.5
    assert engine.tokens_per_step is not None and engine.tokens_per_step > 0
    assert engine.prefix_hit_share is not None and engine.prefix_hit_share > 0.5
    assert found.requests_per_s == sum(worker.requests_per_s for worker in found.workers)
    assert all(request.decode_ms + request.prefill_ms > 0 for request in found.slowest)
    assert len(re.findall(r"[1-9]\d* tok/s", live)) >= 2, "drawn again and again"
    assert {"workers", "engines", "slowest of the last minute"} <= {line.strip() for line in live.splitlines()}


def live_screens(ops_url: str) -> str:
    """What `tokenfleet top` draws in a terminal within some looks, until it is interrupted."""
    ignoring = ["env", "--ignore-signal=INT"]  # as whoever a shell has started in the background inherits it
    command = [*ignoring, sys.executable, "-m", "ops", "top", "--url", ops_url, "--interval", "0.3"]
    terminal, far_end = pty.openpty()
    fcntl.ioctl(far_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = subprocess.Popen(command, stdin=far_end, stdout=far_end, stderr=far_end, env=environment())
    os.close(far_end)
    drawn = b""
    try:
        while drawn.count(b"tok/s") < 6:  # two a screen: in the head and over a column
            drawn += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: nobody is at the far end any more
            while piece := os.read(terminal, 65536):
                drawn += piece
        assert process.wait(20) == 0
    finally:
        os.close(terminal)
        process.kill()
        process.wait()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode(errors="replace"))


def test_without_a_fleet_there_is_nothing_to_see() -> None:
    ended = run_to_end("top", "--url", "http://127.0.0.1:9", "--once")

    assert ended.returncode == 1
    assert "cannot be read" in ended.stderr
