"""Fixtures that several folders share."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from loadtests.embedded_model import embedded_model
from tests.integration.fleet import START_TIMEOUT_S, Fleet

VLLM_START_TIMEOUT_S = 600.0  # its imports alone take half a minute of a core
VLLM_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def pytest_configure() -> None:
    """Before torch is loaded, here and in the fleets: its threads sleep between two operators. Spinning, they take the cores
    from the processes that they wait for, and the tests of the real engine take three times the CPU."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm-python", help="interpreter with vLLM: the tests of the real model are of the engine vllm")
    parser.addoption("--forbid-skips", action="store_true", help="a skipped test fails, but for those of GPUs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_skip = report.skipped and not hasattr(report, "wasxfail")
    if is_skip and item.config.getoption("--forbid-skips") and "gpu" not in item.path.parts:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded default model as a Hugging Face folder; converted at the first use on a machine."""
    return embedded_model()


@pytest.fixture(scope="session")
def sim_fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers before the engine that computes nothing, a step every 2 ms."""
    log_path = tmp_path_factory.mktemp("sim-fleet") / "log"
    with Fleet(log_path, str(model_folder), "--engine", "sim", "--workers", "2", "--sim-step-ms", "2") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def core_fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers before the real model, in float32: its output does not depend on the batch."""
    log_path = tmp_path_factory.mktemp("core-fleet") / "log"
    flags = ["--workers", "2", "--dtype", "float32"]
    vllm_python = request.config.getoption("--vllm-python")
    if vllm_python:
        os.environ.update(VLLM_ENV)
        flags += ["--engine", "vllm", "--vllm-python", vllm_python, "--max-model-len", "8192"]
        flags += ["--", "--enforce-eager", "--block-size", "32"]  # its own 128 would share nothing of short prompts
    with Fleet(log_path, *flags, start_timeout_s=VLLM_START_TIMEOUT_S if vllm_python else START_TIMEOUT_S) as fleet:
        yield fleet
