"""An engine dies under embeddings and no client sees more than a pause: every vector is that of an undisturbed run."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx

from tests.integration.fleet import Fleet

NUM_REQUESTS = 24
STEP_MS = 300


def test_embeddings_survive_their_engine(model_folder: Path, tmp_path: Path) -> None:
    flags = ["--engine", "sim", "--workers", "2", "--sim-step-ms", str(STEP_MS), "--restart-backoff-max-s", "0.1"]
    with Fleet(tmp_path / "log", str(model_folder), *flags) as fleet:
        undisturbed = asyncio.run(_embed_all(fleet, kills=False))
        disturbed = asyncio.run(_embed_all(fleet, kills=True))

        assert fleet.log.count('process died child="engine 0"') == 1
    assert disturbed == undisturbed
    assert len({tuple(vector) for vectors in disturbed for vector in vectors}) == 2 * NUM_REQUESTS


async def _embed_all(fleet: Fleet, *, kills: bool) -> list[list[list[float]]]:
    async with httpx.AsyncClient(base_url=fleet.base_url, timeout=60) as client:
        running = [asyncio.create_task(_embed(client, number)) for number in range(NUM_REQUESTS)]
        if kills:
            await asyncio.sleep(STEP_MS / 2e3)  # all are sent, and the first step is not over
            os.kill(fleet.pids("engine")[0], signal.SIGKILL)
        return await asyncio.gather(*running)


async def _embed(client: httpx.AsyncClient, number: int) -> list[list[float]]:
    texts = [f"Sentence {number}.", f"Another one, {number}."]
    response = await client.post("/v1/embeddings", json={"input": texts, "dimensions": 8})
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["data"]
    return [row["embedding"] for row in rows]
