"""The engine vllm before a scripted engine core that speaks vLLM's protocol: real processes, no vLLM."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from loadtests.peers.server import free_port
from loadtests.processes import descendants, title
from ops.roles import ROOT
from tests.integration.fleet import Fleet, environment

IDS = list(range(1000, 9000))


@contextmanager
def engine_core(port: int, tmp_path: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(IDS))
    command = [
        sys.executable, "-m", "loadtests.peers.vllm_mock_engine", "--handshake", f"tcp://127.0.0.1:{port}",
        "--token-ids", str(ids), *flags,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def counts_of(process: "subprocess.Popen[str]") -> dict[str, int]:
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    counts: dict[str, int] = json.loads(process.stdout.readline())
    return counts


def fleet_at(port: int, tmp_path: Path, model_folder: Path, *flags: str) -> Fleet:
    return Fleet(
        tmp_path / "fleet.log", str(model_folder), "--workers", "2", "--engine", "vllm",
        "--vllm-handshake", f"tcp://127.0.0.1:{port}", *flags,
    )  # fmt: skip


def complete(fleet: Fleet, **fields: Any) -> httpx.Response:
    body = {"prompt": "hi", "max_tokens": 20, "ignore_eos": True, **fields}
    return httpx.post(fleet.base_url + "/v1/completions", json=body, timeout=60)


def test_streams_and_whole_answers_come_through_and_what_is_given_up_is_aborted(
    tmp_path: Path, model_folder: Path
) -> None:
    port = free_port()
    with engine_core(port, tmp_path, "--step-ms", "2") as core, fleet_at(port, tmp_path, model_folder) as fleet:
        whole = complete(fleet).json()
        events = complete(fleet, stream=True, n=3, stream_options={"include_usage": True}).text.split("\n\n")
        with httpx.stream(
            "POST", fleet.base_url + "/v1/completions", json={"prompt": "hi", "max_tokens": 4000, "stream": True}
        ) as response:
            next(response.iter_lines())
        fleet.wait_until(lambda: counts_of(core)["aborts"] == 1, 10)

        assert whole["usage"]["completion_tokens"] == 20 and whole["choices"][0]["finish_reason"] == "length"
        assert len(whole["choices"][0]["text"]) > 20
        assert json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"] == 60
        assert complete(fleet, temperature=0.5, seed=2, logit_bias={"5": 1.0}).status_code == 200
        refused = httpx.post(fleet.base_url + "/v1/embeddings", json={"input": "hi"}, timeout=30)
        assert refused.status_code == 400 and "engine vllm" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("version", "num_calls"), [("0.33.0", 3), ("0.24.0", 4)])
def test_adapters_kv_transfer_and_sleep_reach_the_engine_core(
    tmp_path: Path, model_folder: Path, version: str, num_calls: int
) -> None:
    port = free_port()
    flags = ("--server-dev-mode", "--lora-modules", "poems=/adapters/poems")
    with (
        engine_core(port, tmp_path, "--version", version) as core,
        fleet_at(port, tmp_path, model_folder, *flags) as fleet,
    ):
        told = {"do_remote_decode": True, "remote_block_ids": [1, 2]}
        whole = complete(fleet, model="poems", kv_transfer_params=told).json()
        streamed = complete(fleet, kv_transfer_params=told, stream=True).text
        slept = httpx.post(fleet.base_url + "/sleep?level=1", timeout=30).json()
        woken = httpx.post(fleet.base_url + "/wake_up?tags=weights&tags=kv_cache", timeout=30).json()

        assert whole["kv_transfer_params"] == told and whole["model"] == "poems"
        assert len(whole["choices"][0]["text"]) > 20 and '"finish_reason":"length"' in streamed
        assert complete(fleet, model="prose").status_code == 404
        assert slept == {"status": "sleeping", "level": 1}
        assert woken == {"status": "awake", "tags": ["weights", "kv_cache"]}
        assert counts_of(core)["calls"] == num_calls, "add_lora, sleep, wake_up, of 0.24 is_sleeping too"


def test_several_engine_cores_share_the_work_keep_prefixes_together_and_stand_in_for_each_other(
    tmp_path: Path, model_folder: Path
) -> None:
    ports = free_neighbours()
    texts: list[str] = []
    flags = ("--engines", "2")
    with (
        engine_core(ports[0], tmp_path, "--step-ms", "5") as first,
        engine_core(ports[1], tmp_path, "--step-ms", "5") as second,
        fleet_at(ports[0], tmp_path, model_folder, *flags) as fleet,
    ):
        fleet.wait_until(lambda: fleet.log.count("engine ready") == 2, 30)
        spread = in_parallel(40, lambda number: complete(fleet, prompt=f"{number} " * 40, max_tokens=60))
        before = counts_of(first)["requests"], counts_of(second)["requests"]
        for _ in range(6):
            complete(fleet, prompt="one and the same beginning of a text " * 20)
        after = counts_of(first)["requests"], counts_of(second)["requests"]

        def stream(number: int) -> None:
            texts.append(complete(fleet, prompt=f"{number} " * 40, stream=True, max_tokens=200, temperature=0).text)

        threads = [threading.Thread(target=stream, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        fleet.wait_until(lambda: counts_of(second)["requests"] > after[1], 10)
        os.kill(first.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(60)

    assert all(answer.status_code == 200 for answer in spread)
    assert sum(before) == 40 and min(before) >= 14, before
    assert sorted((after[0] - before[0], after[1] - before[1])) == [0, 6], "who has the prefix gets all of them"
    assert len(texts) == 10 and all('"finish_reason":"length"' in text and '"error"' not in text for text in texts)


def free_neighbours() -> tuple[int, int]:
    """Two ports in a row that nobody has."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port, port + 1


def in_parallel(count: int, ask: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_when_the_engine_core_dies_streams_go_on_in_the_next_one_and_those_with_a_seed_end_with_an_error(
    tmp_path: Path, model_folder: Path
) -> None:
    port, texts = free_port(), dict[str, str]()
    sampling = {
        "greedy": {"temperature": 0.0},
        "sampled": {"temperature": 1.0},
        "seeded": {"temperature": 1.0, "seed": 5},
    }

    def stream(fleet: Fleet, name: str) -> None:
        texts[name] = complete(
            fleet, stream=True, max_tokens=150, stream_options={"include_usage": True}, **sampling[name]
        ).text

    with engine_core(port, tmp_path, "--step-ms", "20") as core, fleet_at(port, tmp_path, model_folder) as fleet:
        threads = [threading.Thread(target=stream, args=(fleet, name)) for name in sampling]
        for thread in threads:
            thread.start()
        fleet.wait_until(lambda: counts_of(core)["tokens"] > 30, 20)
        os.kill(core.pid, signal.SIGKILL)
        fleet.wait_until(lambda: fleet.probe("/readyz") == 503, 10)
        with engine_core(port, tmp_path, "--step-ms", "20") as successor:
            fleet.wait_until(lambda: fleet.probe("/readyz") == 200, 30)
            for thread in threads:
                thread.join(30)
            counts = counts_of(successor)

    for name in ("greedy", "sampled"):
        events = texts[name].split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"] == 150
        assert "error" not in texts[name]
    assert '"error"' in texts["seeded"] and "a seed" in texts["seeded"]
    assert counts["requests"] == 2, "the one with a seed was not sent again"


def test_an_engine_core_that_is_restarted_at_once_is_served_again_by_itself(tmp_path: Path, model_folder: Path) -> None:
    """Its HELLO comes while the bridge has not missed the old one yet; it would not say it again."""
    port = free_port()
    with engine_core(port, tmp_path) as core, fleet_at(port, tmp_path, model_folder) as fleet:
        assert complete(fleet).status_code == 200
        core.kill()
        with engine_core(port, tmp_path) as successor:
            fleet.wait_until(lambda: fleet.log.count("engine ready") == 2, 20)
            fleet.wait_until(lambda: complete(fleet).status_code == 200, 10)

            assert counts_of(successor)["requests"] == 1


def test_a_port_scan_ends_no_engine(tmp_path: Path, model_folder: Path) -> None:
    port = free_port()
    with engine_core(port, tmp_path), fleet_at(port, tmp_path, model_folder) as fleet:
        [engine] = fleet.pids("engine")
        ports = listening_ports(engine)
        for scanned in ports:
            socket.create_connection(("127.0.0.1", scanned)).close()
        time.sleep(0.5)  # longer than between two looks

        assert complete(fleet).status_code == 200 and fleet.pids("engine") == [engine]
        assert len(ports) == 2 and port not in ports, "requests and outputs; the handshake is over"


def listening_ports(pid: int) -> list[int]:
    """Over TCP."""
    own = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(line[1].split(":")[1], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]


def stubborn_vllm(tmp_path: Path) -> Path:
    """What passes for the interpreter of a vLLM: a mock engine core under a parent that hears no SIGTERM and outlives it."""
    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/sh
        trap '' TERM
        echo "$@" >> {tmp_path}/told
        while [ "$1" != --data-parallel-rpc-port ]; do shift; done
        PYTHONPATH={ROOT} {sys.executable} -m loadtests.peers.vllm_mock_engine --token-ids {tmp_path}/ids.json \
            --handshake tcp://127.0.0.1:$2 &
        echo $! >> {tmp_path}/cores
        while :; do sleep 1000; done
        """
    )
    python.chmod(0o755)
    return python


def test_a_vllm_that_does_not_stop_is_killed_when_its_core_died_and_when_the_fleet_stops(
    tmp_path: Path, model_folder: Path
) -> None:
    python = stubborn_vllm(tmp_path)
    fleet = Fleet(
        tmp_path / "fleet.log", str(model_folder), "--workers", "1", "--engine", "vllm", "--vllm-python", str(python),
        "--", "--scheduling-policy", "fcfs",
    )  # fmt: skip
    with fleet:
        assert complete(fleet).status_code == 200
        first = [pid for pid in descendants(fleet.process.pid) if str(python) in title(pid)]
        os.kill(int((tmp_path / "cores").read_text()), signal.SIGKILL)
        again_s = fleet.wait_until(lambda: fleet.log.count("engine ready") == 2, 30)
        fleet.wait_until(lambda: complete(fleet).status_code == 200, 10)

        assert again_s < 10 and len(first) == 1
        assert first[0] not in descendants(fleet.process.pid)
        told = (tmp_path / "told").read_text().splitlines()
        assert [line.split("--scheduling-policy ")[1:] for line in told] == [["priority ", "fcfs"]] * 2
    # which has asserted that nothing is left


def test_a_vllm_that_is_not_ready_in_time_is_started_again(tmp_path: Path, model_folder: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho started >> {tmp_path}/told\nexec sleep 1000\n")
    python.chmod(0o755)
    fleet = Fleet(
        tmp_path / "fleet.log", str(model_folder), "--workers", "1", "--engine", "vllm", "--vllm-python", str(python),
        "--engine-start-timeout-s", "4",
    )  # fmt: skip
    with fleet.started():
        fleet.wait_until(
            lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text().count("started") == 2, 40
        )

        assert "vLLM is not ready after 4 s, --engine-start-timeout-s" in fleet.log
        assert "process is stuck" not in fleet.log


def test_an_unknown_version_stops_the_start_with_a_reason(tmp_path: Path, model_folder: Path) -> None:
    port = free_port()
    fleet = fleet_at(port, tmp_path, model_folder)
    with engine_core(port, tmp_path, "--version", "0.99.1"), fleet.started():
        assert fleet.process.wait(60) != 0
        assert "vLLM 0.99.1 is not known" in fleet.log and "--vllm-version" in fleet.log


def test_smaller_blocks_than_the_fleets_stop_the_start_with_a_reason(tmp_path: Path, model_folder: Path) -> None:
    """A salt is told to vLLM by the first block: what is shorter must not be shared there."""
    port = free_port()
    fleet = fleet_at(port, tmp_path, model_folder, "--block-size", "32")
    with engine_core(port, tmp_path), fleet.started():
        assert fleet.process.wait(60) != 0
        assert "KV blocks have 16 tokens" in fleet.log and "--block-size" in fleet.log


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--engine", "vllm"], "--vllm-python"),
        (["--engine", "vllm", "--vllm-python", "p", "--vllm-handshake", "tcp://h:1"], "either"),
        (["--engine", "vllm", "--vllm-handshake", "h:1"], "tcp://HOST:PORT"),
        (["--engine", "vllm", "--vllm-python", "p", "--engines", "2"], "--engines"),
        (["--engine", "vllm", "--vllm-handshake", "tcp://h:1", "--", "--enforce-eager"], "started here"),
        (["--engine", "sim", "--", "--enforce-eager"], "--engine vllm only"),
        (["--vllm-version", "0.33"], "--engine vllm only"),
        (["--lora-modules", "a=b"], "--engine vllm only"),
        (["--engine", "vllm", "--vllm-python", "p", "--lora-modules", "a"], "NAME=PATH"),
        (["--engine", "vllm", "--vllm-python", "p", "--lora-modules", "a=b", "--lora-modules", "a=c"], "named twice"),
        (["--engine", "vllm", "--vllm-python", "p", "--", "--lora-modules", "a=b"], "before --"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    capfd: pytest.CaptureFixture[str], flags: list[str], word: str
) -> None:
    from ops.cli import run

    assert run(["check", *flags]) != 0
    assert word in capfd.readouterr().err


@pytest.mark.parametrize("skips_specials", [True, False])
def test_ids_of_every_kind_come_as_the_text_they_are(tmp_path: Path, model_folder: Path, skips_specials: bool) -> None:
    """Many steps in one record, with parts of characters and special ids among them, all in order."""
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    draw, everything = random.Random(1), range(tokenizer.get_vocab_size())
    partial = [number for number in everything if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([number])]
    special = [number for number in everything if not tokenizer.decode([number], skip_special_tokens=True)]
    answers = [
        [draw.choice(kind) for kind in draw.choices([everything, partial, special], [0.7, 0.2, 0.1], k=40)]
        for _ in range(100)
    ]
    port = free_port()
    with (
        engine_core(port, tmp_path, "--step-ms", "0.2", "--echo"),
        fleet_at(port, tmp_path, model_folder) as fleet,
        ThreadPoolExecutor(8) as pool,
    ):

        def streamed(ids: list[int]) -> str:
            body = {"max_tokens": len(ids), "stream": True, "skip_special_tokens": skips_specials, "temperature": 0}
            events = complete(fleet, prompt=ids, **body).text.split("\n\n")[:-2]
            return "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)

        assert list(pool.map(streamed, answers)) == [
            tokenizer.decode(ids, skip_special_tokens=skips_specials) for ids in answers
        ]
