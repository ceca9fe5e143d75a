"""Locust's user before a real fleet: the times it reports are those of the engine's steps."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.peers.server import free_port
from tests.integration.fleet import Fleet

pytestmark = pytest.mark.ops

STEP_MS = 40
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slow_fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    log_path = tmp_path_factory.mktemp("fleet") / "log"
    flags = ["--engine", "sim", "--workers", "1", "--sim-step-ms", str(STEP_MS)]
    with Fleet(log_path, str(model_folder), *flags) as fleet:
        yield fleet


def locust(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def scenario(tmp_path: Path, **fields: object) -> str:
    path = tmp_path / "scenario.toml"
    fields = {"seconds": 4, "prompt_words": 10, "max_tokens": 25, **fields}
    path.write_text('description = "d"\n' + "".join(f"{name} = {value}\n" for name, value in fields.items()))
    return str(path)


def figures(report: str, row: str) -> list[float]:
    line = next(line for line in report.splitlines() if line.startswith(f"| {row} "))
    return [float(number) for number in re.findall(r"[\d.]+", line.split("|")[2])]


def num_aborted(fleet: Fleet) -> float:
    with urllib.request.urlopen(fleet.ops_url + "/metrics") as response:
        lines = response.read().decode().splitlines()
    line = next(line for line in lines if "request_success_total" in line and 'finished_reason="abort"' in line)
    return float(line.split()[-1])


def test_the_first_token_and_the_gaps_are_those_of_the_engine(slow_fleet: Fleet, tmp_path: Path) -> None:
    done = locust("--host", slow_fleet.base_url, "--scenario", scenario(tmp_path, users=4))

    assert done.returncode == 0, done.stdout + done.stderr
    whole, left, failed = figures(done.stdout, "whole answers, left, failed")
    assert whole >= 8 and left == failed == 0
    # 25 tokens are 24 steps behind the first: whoever waits for 1024 bytes sees the first some steps late
    assert figures(done.stdout, "TTFT p50 / p99 ms")[0] < 3 * STEP_MS
    assert figures(done.stdout, "between two events p50 / p99 ms")[0] == pytest.approx(STEP_MS, rel=0.2)
    assert figures(done.stdout, "whole answer p50 / p99 ms")[0] == pytest.approx(25.5 * STEP_MS, rel=0.15)


def test_who_leaves_is_aborted_in_the_server(slow_fleet: Fleet, tmp_path: Path) -> None:
    aborted_before = num_aborted(slow_fleet)

    storm = scenario(tmp_path, users=4, leave_share=1.0, leave_after_events=3)
    done = locust("--host", slow_fleet.base_url, "--scenario", storm)

    assert done.returncode == 0, done.stdout + done.stderr
    _, left, failed = figures(done.stdout, "whole answers, left, failed")
    assert left >= 8 and failed == 0
    slow_fleet.wait_until(lambda: num_aborted(slow_fleet) - aborted_before == left, 10)


def test_arrivals_do_not_wait_for_answers(slow_fleet: Fleet, tmp_path: Path) -> None:
    done = locust("--host", slow_fleet.base_url, "--scenario", scenario(tmp_path, arrivals_per_s=10.0, max_tokens=50))

    assert done.returncode == 0, done.stdout + done.stderr
    whole = figures(done.stdout, "whole answers, left, failed")[0]
    assert whole >= 20  # in 4 s; one after the other, of 2 s each, they would be two


def test_without_an_answer_there_is_no_report(tmp_path: Path) -> None:
    report = tmp_path / "report.md"

    nobody = f"http://127.0.0.1:{free_port()}"
    done = locust("--host", nobody, "--scenario", scenario(tmp_path, seconds=1, pause_s=0.2), "--report", str(report))

    assert done.returncode == 3, done.stdout + done.stderr
    assert "no answer came" in done.stderr and not report.exists()


@pytest.mark.parametrize("flag", ["--csv", "--html"])
def test_a_report_that_could_not_be_refused_is_refused_at_once(flag: str, tmp_path: Path) -> None:
    done = locust("--host", "http://127.0.0.1:1", flag, str(tmp_path / "x"))

    assert done.returncode == 1 and "no report that could not be refused" in done.stderr, done.stdout + done.stderr


def test_an_unknown_scenario_is_not_begun() -> None:
    done = locust("--host", "http://127.0.0.1:1", "--scenario", "nothing")

    assert done.returncode == 1 and "no scenario nothing" in done.stderr, done.stdout + done.stderr
