"""Every worker is replaced under load and no client notices; a reload that cannot work changes nothing."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.chaos.client import Seen, complete
from ops.run_folder import the_fleet
from tests.integration.fleet import Fleet, environment

NUM_STREAMS = int(os.environ.get("RELOAD_STREAMS", "60"))  # `make reload` asks for more
NUM_TOKENS = 150
SIM = ("--engine", "sim", "--sim-step-ms", "40")


def body_of(number: int, num_tokens: int) -> dict[str, Any]:  # Any: the JSON of a request
    body: dict[str, Any] = {"prompt": f"Story {number}", "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    return {**body, "stream_options": {"include_usage": True}}


def has_failed(fleet: Fleet, reason: str) -> bool:
    return "reload failed" in fleet.log and reason in fleet.log


async def keep_coming(fleet: Fleet, seen: list[Seen], until: "asyncio.Event") -> None:
    """One request after the other, each on a connection that may have been taken by a worker that leaves."""
    while not until.is_set():
        hesitation_s = len(seen) % 4 * 0.02
        seen.append(await complete(fleet.port, body_of(len(seen), 5), Seen(), hesitation_s=hesitation_s))


async def reload_under_load(fleet: Fleet) -> tuple[list[Seen], list[Seen]]:
    long = [Seen() for _ in range(NUM_STREAMS)]
    short: list[Seen] = []
    is_over = asyncio.Event()
    streams = [asyncio.create_task(complete(fleet.port, body_of(n, NUM_TOKENS), one)) for n, one in enumerate(long)]
    comers = [asyncio.create_task(keep_coming(fleet, short, is_over)) for _ in range(16)]
    while not all(one.num_events > 10 for one in long):
        await asyncio.sleep(0.01)
    os.kill(fleet.process.pid, signal.SIGHUP)
    async with asyncio.timeout(60):
        while "reloaded" not in fleet.log:
            await asyncio.sleep(0.05)
    is_over.set()
    await asyncio.gather(*streams, *comers)
    return long, short


def test_all_workers_are_replaced_and_no_stream_and_no_request_is_lost(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--workers", "2") as fleet:
        before, engines, zygote = fleet.pids("worker"), fleet.pids("engine"), fleet.pids("zygote")

        long, short = asyncio.run(reload_under_load(fleet))

        assert {one.ending for one in long + short} == {"finished"}
        print(f"{len(long)} streams and {len(short)} short requests, all whole, none refused")  # with -s
        assert {one.num_tokens for one in long} == {NUM_TOKENS} and {one.num_tokens for one in short} == {5}
        assert len(short) > 20
        after = fleet.pids("worker")
        assert len(after) == 2 and not set(after) & set(before)
        assert fleet.pids("engine") == engines and fleet.pids("zygote") != zygote
        with urllib.request.urlopen(fleet.ops_url + "/readyz", timeout=5) as response:
            facts = json.load(response)
        assert (facts["workers_ready"], facts["restarts"]) == (2, 0), "what was planned is no death"


def test_a_lone_worker_hands_over_too_and_the_new_one_has_the_new_settings(model_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text("[server]\nmax_n = 2\n[ops]\nlog_level = 'warning'\n")
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--workers", "1", "--config", str(config)) as fleet:
        two = {**body_of(0, 3), "n": 2}
        assert asyncio.run(complete(fleet.port, two, Seen())).status == 200

        config.write_text("[server]\nmax_n = 1\n[ops]\nlog_level = 'info'\n")
        command = [sys.executable, "-m", "ops", "reload", "--pid", str(fleet.process.pid)]
        subprocess.run(command, check=True, env=environment(), capture_output=True)
        fleet.wait_until(lambda: "reloaded" in fleet.log, 30)  # which is a line of level info

        assert asyncio.run(complete(fleet.port, two, Seen())).status == 400
        shown = {setting.name: setting.value for setting in the_fleet(fleet.process.pid).settings}
        assert shown["max_n"] == "1", "observers are told the old settings"
        os.kill(fleet.pids("worker")[0], signal.SIGKILL)  # its successor is born with them as well
        fleet.wait_until(lambda: "process died" in fleet.log and fleet.is_ready(), 10)
        assert asyncio.run(complete(fleet.port, two, Seen())).status == 400


def test_a_reload_that_cannot_be_done_says_why_and_changes_nothing(model_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text("")
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--workers", "1", "--config", str(config)) as fleet:
        before = fleet.pids("worker")
        for content, reason in (
            ("[engine]\nmax_num_seqs = 7\n", "--max-num-seqs cannot change while the fleet runs"),
            ("[server]\nmax_m = 7\n", "max_m"),
        ):
            config.write_text(content)
            os.kill(fleet.process.pid, signal.SIGHUP)
            fleet.wait_until(partial(has_failed, fleet, reason), 10)

        assert fleet.pids("worker") == before and fleet.is_ready()


def test_a_zygote_that_dies_while_it_loads_leaves_the_fleet_as_it_was(model_folder: Path, tmp_path: Path) -> None:
    with Fleet(tmp_path / "log", str(model_folder), *SIM, "--workers", "1") as fleet:
        [old] = fleet.pids("zygote")
        os.kill(fleet.process.pid, signal.SIGHUP)
        fleet.wait_until(lambda: len(fleet.pids("zygote")) == 2, 10)
        [new] = set(fleet.pids("zygote")) - {old}

        os.kill(new, signal.SIGKILL)

        fleet.wait_until(lambda: "reloaded" in fleet.log, 30)  # the next one loads
        assert fleet.is_ready() and fleet.pids("zygote") not in ([old], [new])


def test_a_zygote_that_cannot_load_leaves_the_fleet_as_it_was_and_workers_are_still_replaced(
    model_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    with Fleet(tmp_path / "log", str(model), *SIM, "--workers", "1") as fleet:
        tokenizer, [zygote], [worker] = model / "tokenizer.json", fleet.pids("zygote"), fleet.pids("worker")
        whole = tokenizer.read_bytes()
        tokenizer.write_bytes(b"{}")

        os.kill(fleet.process.pid, signal.SIGHUP)
        fleet.wait_until(lambda: len(fleet.pids("zygote")) == 2, 10)
        os.kill(worker, signal.SIGKILL)
        fleet.wait_until(lambda: has_failed(fleet, "the new zygote has not loaded"), 30)

        fleet.wait_until(lambda: fleet.is_ready() and fleet.pids("worker") not in ([], [worker]), 10)
        assert fleet.pids("zygote") == [zygote]
        tokenizer.write_bytes(whole)
        os.kill(fleet.process.pid, signal.SIGHUP)
        fleet.wait_until(lambda: "reloaded" in fleet.log, 30)
        assert fleet.is_ready()
