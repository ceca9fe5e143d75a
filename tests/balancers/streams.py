"""Chats streamed through a balancer, each told to be whole or what went wrong."""

import asyncio
import json
import re
import urllib.request
from collections import Counter

import httpx

from tests.integration.fleet import Fleet

NUM_TOKENS = 40


async def stream(client: httpx.AsyncClient, base_url: str, model: str, num_tokens: int) -> str:
    """ "whole", or what went wrong."""
    body = {
        "model": model, "stream": True, "max_tokens": num_tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": "count"}], "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage, lines = None, []
    try:
        async with client.stream("POST", f"{base_url}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return f"status {response.status_code}"
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line[6:])
    except httpx.HTTPError as error:
        return f"{type(error).__name__} after {len(lines)} events"
    for line in lines[:-1]:
        usage = json.loads(line).get("usage") or usage
    if not lines or lines[-1] != "[DONE]" or usage is None or usage["completion_tokens"] != num_tokens:
        return f"cut after {len(lines)} events"
    return "whole"


async def streams(base_url: str, model: str, *, num: int, every_s: float, num_tokens: int = NUM_TOKENS) -> Counter[str]:
    """How `num` streams ended that started `every_s` apart, each over a connection of its own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
        running = []
        for _ in range(num):
            running.append(asyncio.create_task(stream(client, base_url, model, num_tokens)))
            await asyncio.sleep(every_s)
        return Counter(await asyncio.gather(*running))


def model_name(base_url: str) -> str:
    with urllib.request.urlopen(base_url + "/v1/models", timeout=10) as response:
        return str(json.load(response)["data"][0]["id"])


def num_finished(fleet: Fleet) -> int:
    """Requests that this fleet has answered to their end."""
    with urllib.request.urlopen(fleet.ops_url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    counts = re.findall(r"^vllm:request_success_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))
