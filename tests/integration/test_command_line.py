"""The command line as an operator meets it: one line for each mistake, no traceback, and an exit code that means it."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.fleet import Fleet, environment, run_to_end

MISTAKES = [
    (["serve", "--prot", "1"], 2, "did you mean --port?"),
    (["serve", "--port", "99999"], 2, "--port"),
    (["serve", "--workers", "none"], 2, "--workers"),
    (["serve", "/no/such/folder"], 1, "/no/such/folder"),
    (["serve", "/no/such.gguf"], 1, "does not exist"),
    (["check", "--config", "/no/such.toml"], 2, "/no/such.toml"),
    (["frobnicate"], 2, "frobnicate"),
]


@pytest.mark.parametrize(("arguments", "code", "hint"), MISTAKES, ids=lambda value: str(value))
def test_a_mistake_is_one_line(arguments: list[str], code: int, hint: str) -> None:
    done = run_to_end(*arguments)

    assert done.returncode == code
    assert hint in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_busy_port_is_one_line() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        done = run_to_end("serve", "--port", str(busy.getsockname()[1]), "--ops-port", "0")

    assert done.returncode == 1
    assert "address already in use" in done.stderr and len(done.stderr.splitlines()) == 1


def broken_copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja"):
            (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("fault", "hint"),
    [("no weights", "no model.safetensors"), ("truncated", "not a whole safetensors file"), ("mamba", "not supported")],
)
def test_a_model_that_cannot_be_loaded_stops_the_start_with_a_reason(
    model_folder: Path, tmp_path: Path, fault: str, hint: str
) -> None:
    folder = broken_copy(model_folder, tmp_path / "model")
    if fault == "truncated":
        with (model_folder / "model.safetensors").open("rb") as weights:
            (folder / "model.safetensors").write_bytes(weights.read(1_000_000))
    if fault == "mamba":
        config = (folder / "config.json").read_text().replace("LlamaForCausalLM", "MambaForCausalLM")
        (folder / "config.json").write_text(config)

    done = run_to_end("serve", str(folder), "--port", "0", "--ops-port", "0")

    assert done.returncode == 1
    assert hint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello world, this is no model at all"])
def test_a_broken_gguf_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)

    done = run_to_end(
        "serve", str(tmp_path / "model.gguf"), "--cache-dir", str(tmp_path / "cache"), "--port", "0", "--ops-port", "0"
    )

    assert done.returncode == 1
    assert "not a whole GGUF file" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("cache/*")), "half a folder was left"


def test_check_prints_every_value_with_its_origin(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[engine]\nmax_num_seqs = 7\n")

    done = subprocess.run(
        [sys.executable, "-m", "ops", "check", str(model_folder), "--config", str(file), "--port", "9999"],
        capture_output=True, text=True, check=True, env={**environment(), "TOKENFLEET_SEED": "3"},
    )  # fmt: skip

    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    origins = {name: (value, origin) for _, name, value, origin in rows}
    assert origins["max_num_seqs"][0] == "7" and str(file) in origins["max_num_seqs"][1]
    assert origins["seed"] == ("3", "TOKENFLEET_SEED")
    assert origins["port"] == ("9999", "--port")
    assert origins["host"] == ("127.0.0.1", "default")


def test_the_command_of_the_ready_line_gets_its_answer(core_fleet: Fleet) -> None:
    core_fleet.wait_until(lambda: "  curl " in core_fleet.log, timeout_s=10)  # it follows the first ready probe
    [line] = [line for line in core_fleet.log.splitlines() if line.startswith("  curl ")]
    _, url, *rest = shlex.split(line)
    body = rest[rest.index("-d") + 1]

    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)

    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_wiretap_shows_a_request_on_its_way(sim_fleet: Fleet, tmp_path: Path) -> None:
    log_path = tmp_path / "tap"
    command = [sys.executable, "-m", "ops", "wiretap", "--pid", str(sim_fleet.process.pid)]

    def has_heard_a_whole_request() -> bool:  # messages and records are heard once each source has been joined
        httpx.post(sim_fleet.base_url + "/v1/completions", json={"prompt": "hi", "max_tokens": 3, "stream": True})
        heard = log_path.read_text()
        return "generate" in heard and "finish" in heard

    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, env=environment()) as tap:
        sim_fleet.wait_until(has_heard_a_whole_request, timeout_s=20)
        tap.terminate()

    lines = log_path.read_text().splitlines()
    assert any(">engine 0 generate" in line and "prompt=" in line for line in lines)
    assert any("engine 0 => worker" in line and "tokens " in line for line in lines)
