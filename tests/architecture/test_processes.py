"""The import rules as they hold in running processes, and the packages as they lie in this checkout."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.processes import descendants, memory
from tests.integration.fleet import Fleet

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["apiserver", "engine_core", "ipc", "ops", "config"])
def test_packages_come_from_this_checkout(package: str) -> None:
    assert Path(importlib.import_module(package).__file__ or "").parent == ROOT / package


@pytest.mark.parametrize("module", ["apiserver.worker", "apiserver.preload", "ipc.broker", "ops.supervisor"])
def test_importing_a_light_role_loads_no_torch_and_no_tracing(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"torch", "transformers", "flash_attn", "opentelemetry"} & set(loaded)


def test_no_worker_of_a_running_fleet_has_torch_mapped(sim_fleet: Fleet) -> None:
    pids = sim_fleet.pids("worker") + sim_fleet.pids("broker") + sim_fleet.pids("zygote") + [sim_fleet.process.pid]

    assert len(pids) == 5
    for pid in pids:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_nothing_of_a_fleet_lies_in_dev_shm(sim_fleet: Fleet) -> None:
    for pid in [sim_fleet.process.pid, *descendants(sim_fleet.process.pid)]:
        files = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        assert not [file for file in files if file.startswith("/dev/shm")]
        assert " /dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()


def test_an_idle_worker_is_small(sim_fleet: Fleet) -> None:
    for pid in sim_fleet.pids("worker"):
        assert memory([pid]).pss_mb < 80
