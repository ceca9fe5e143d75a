"""Limits of a key over a real fleet of workers, and a key file that changes under it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.integration.fleet import Fleet

WORKERS, LIMIT = 3, 20
FLAGS = ("--engine", "sim", "--sim-step-ms", "1", "--workers", str(WORKERS))


def test_limits_hold_over_all_workers_and_a_new_secret_is_taken_up(tmp_path: Path) -> None:
    keys, first, second = tmp_path / "keys.toml", tmp_path / "first", tmp_path / "second"
    first.write_text(f'[a]\nkey = "sk-a"\nrequests_per_minute = {LIMIT}\n[b]\nkey = "sk-b"')
    second.write_text('[c]\nkey = "sk-c"')
    keys.symlink_to(first)

    with Fleet(tmp_path / "log", *FLAGS, "--api-key-file", str(keys)) as fleet:

        def ask(key: str) -> int:
            with httpx.Client(base_url=fleet.base_url, timeout=30) as client:  # a new connection: any worker
                headers = {"authorization": f"Bearer {key}"}
                return client.post(
                    "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=headers
                ).status_code

        fleet.wait_until(lambda: ask("sk-b") == 200, 30)
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, ["sk-a"] * 3 * LIMIT))
        assert LIMIT <= statuses.count(200) <= 2 * (LIMIT + WORKERS - 1)  # twice: a minute may turn meanwhile
        assert statuses.count(200) + statuses.count(429) == len(statuses)
        assert ask("sk-b") == 200

        (tmp_path / "swap").symlink_to(second)
        (tmp_path / "swap").replace(keys)
        fleet.wait_until(lambda: [ask("sk-c") for _ in range(4)] == [200] * 4, 30)
        fleet.wait_until(lambda: [ask("sk-a") for _ in range(4)] == [401] * 4, 30)
