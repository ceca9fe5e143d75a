"""Engines die under load and no client sees more than a pause: every text equals that of an undisturbed run."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.chaos.client import Seen, complete
from tests.integration.fleet import Fleet

NUM_REQUESTS = 64
NUM_TOKENS = 250
NUM_KILLS = 3
QUICK_RESTARTS = ("--restart-backoff-max-s", "0.1")
PROMPT_LOOKUP = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}


@pytest.fixture(scope="module")
def fleet(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Every test waits for its own requests to the end, and so for the engine to be back."""
    flags = ("--engine", "sim", "--workers", "2", "--sim-step-ms", "10", *QUICK_RESTARTS)
    with Fleet(tmp_path_factory.mktemp("resume") / "log", str(model_folder), *flags) as fleet:
        yield fleet


def body_of(number: int) -> dict[str, Any]:  # Any: the JSON of a request
    """Every kind of request there is; a quarter each: streams, two choices, whole answers, stop strings."""
    body: dict[str, Any] = {"prompt": f"Story number {number}", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    body["temperature"], body["seed"] = (0, None) if number % 2 else (1, number)
    kinds: list[dict[str, Any]] = [{"stream": True}, {"stream": True, "n": 2}, {}, {"stream": True, "stop": ["Q#"]}]
    return body | kinds[number // 2 % 4]


async def run_all(fleet: Fleet, seen: list[Seen]) -> None:
    await asyncio.gather(*(complete(fleet.port, body_of(number), one) for number, one in enumerate(seen)))


async def kill_engines(fleet: Fleet, seen: list[Seen]) -> None:
    """Whenever all streams have moved on since the last kill."""
    last = [0] * len(seen)
    for _ in range(NUM_KILLS):
        while not all(
            s.num_events > n + 15 for number, (s, n) in enumerate(zip(seen, last, strict=True)) if is_stream(number)
        ):
            await asyncio.sleep(0.02)
        last = [one.num_events for one in seen]
        os.kill(fleet.pids("engine")[0], signal.SIGKILL)


def is_stream(number: int) -> bool:
    return "stream" in body_of(number)


def test_every_kind_of_request_survives_engine_after_engine_with_exactly_its_text(fleet: Fleet) -> None:
    undisturbed = [Seen() for _ in range(NUM_REQUESTS)]
    asyncio.run(run_all(fleet, undisturbed))

    async def disturbed() -> list[Seen]:
        seen = [Seen() for _ in range(NUM_REQUESTS)]
        await asyncio.gather(run_all(fleet, seen), kill_engines(fleet, seen))
        return seen

    seen = asyncio.run(disturbed())

    assert {one.ending for one in undisturbed + seen} == {"finished"}
    assert [one.text for one in seen] == [one.text for one in undisturbed]
    assert [one.num_tokens for one in seen if not one.num_events] == [NUM_TOKENS] * (NUM_REQUESTS // 4)
    assert fleet.log.count('process died child="engine 0"') == NUM_KILLS


def test_a_hung_engine_is_replaced_and_its_streams_go_on(model_folder: Path, tmp_path: Path) -> None:
    flags = ("--engine", "sim", "--workers", "1", "--sim-step-ms", "10", "--engine-step-timeout-s", "1")
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:

        async def hang() -> Seen:
            seen = Seen()
            request = asyncio.create_task(complete(fleet.port, body_of(1), seen))
            while seen.num_events < 10:
                await asyncio.sleep(0.02)
            os.kill(fleet.pids("engine")[0], signal.SIGSTOP)
            return await request

        seen = asyncio.run(hang())
        again = asyncio.run(complete(fleet.port, body_of(1), Seen()))

    assert (seen.ending, again.ending) == ("finished", "finished") and seen.text == again.text
    assert "process is stuck" in fleet.log


def test_broker_and_engine_may_die_together(fleet: Fleet) -> None:
    async def kill_both() -> Seen:
        seen = Seen()
        request = asyncio.create_task(complete(fleet.port, body_of(1), seen))
        while seen.num_events < 10:
            await asyncio.sleep(0.02)
        for role in ("broker", "engine"):
            os.kill(fleet.pids(role)[0], signal.SIGKILL)
        return await request

    seen = asyncio.run(kill_both())
    again = asyncio.run(complete(fleet.port, body_of(1), Seen()))

    assert (seen.ending, again.ending) == ("finished", "finished") and seen.text == again.text


@pytest.mark.parametrize("drafts", [(), ("--speculative-config", json.dumps(PROMPT_LOOKUP))], ids=["plain", "drafts"])
def test_the_real_engine_goes_on_with_the_text_it_would_have_had(
    model_folder: Path, tmp_path: Path, drafts: tuple[str, ...]
) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": "The capital of France is", "max_tokens": 40, "stream": True, "temperature": 0},
        {"prompt": "Once upon a time", "max_tokens": 40, "stream": True, "temperature": 1, "seed": 7},
        {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 1, "seed": 8, "frequency_penalty": 0.5},
        {"prompt": "apples, pears, plums, apples, pears, plums, apples", "max_tokens": 40, "temperature": 0},
    ]
    flags = ("--workers", "1", "--dtype", "float32", *drafts, *QUICK_RESTARTS)
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:

        async def run(num_kills: int) -> list[Seen]:
            seen = [Seen() for _ in bodies]
            requests = [complete(fleet.port, body, one) for body, one in zip(bodies, seen, strict=True)]
            tasks = [asyncio.create_task(request) for request in requests]
            for kill in range(num_kills):
                while seen[0].num_events < 8 * (kill + 1) and not tasks[0].done():
                    await asyncio.sleep(0.01)
                os.kill(fleet.pids("engine")[0], signal.SIGKILL)
            await asyncio.gather(*tasks)
            return seen

        undisturbed, disturbed = asyncio.run(run(0)), asyncio.run(run(2))

    assert {one.ending for one in undisturbed + disturbed} == {"finished"}
    assert [one.text for one in disturbed] == [one.text for one in undisturbed]
