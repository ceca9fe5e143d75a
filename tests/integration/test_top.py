"""`tokenfleet top` on a real fleet."""

import json
from pathlib import Path

from ops.top import fetch
from tests.integration.fleet import Fleet, post_json, run_to_end

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


def test_without_a_fleet_there_is_nothing_to_see() -> None:
    ended = run_to_end("top", "--url", "http://127.0.0.1:9", "--once")

    assert ended.returncode == 1
    assert "cannot be read" in ended.stderr
