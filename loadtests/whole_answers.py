"""A client of non-streamed chats over kept-alive connections: the bench client of vllm-rs only streams."""

import asyncio
import json
import time

from loadtests.bench_client import Outcome
from loadtests.peers.server import MODEL_NAME, Server


def run(server: Server, *, num_tokens: int, connections: int, requests_per_connection: int) -> Outcome:
    """Raises RuntimeError when an answer is not a whole one of `num_tokens`."""
    started_s = time.monotonic()
    answers = asyncio.run(_all(server.port, num_tokens, connections, requests_per_connection))
    duration_s = time.monotonic() - started_s
    return Outcome(len(answers), 0, duration_s, len(answers) * num_tokens, 0.0, 0.0, 0.0, 0.0)


async def _all(port: int, num_tokens: int, connections: int, requests_per_connection: int) -> list[bytes]:
    content = "the quick brown fox jumps over the lazy dog " * 3
    body = json.dumps(
        {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def one() -> list[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = []
        for _ in range(requests_per_connection):
            writer.write(request)
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            [size] = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
            answer = await reader.readexactly(size)
            used = json.loads(answer).get("usage", {}).get("completion_tokens")
            if b" 200 " not in lines[0] or used != num_tokens:
                raise RuntimeError(f"{lines[0]!r}: {used} tokens instead of {num_tokens}")
            answers.append(answer)
        writer.close()
        return answers

    return [answer for answers in await asyncio.gather(*(one() for _ in range(connections))) for answer in answers]
