"""413 over real sockets: the client gets the answer even while it is still sending, and nobody waits for its body."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from apiserver.http_protocol import FleetHttpProtocol
from config.settings import ServerSettings
from tests.unit.apiserver.worker_rig import WorkerRig, make_model_folder

LIMIT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> WorkerRig:
    folder = make_model_folder(tmp_path_factory.mktemp("models") / "tiny")
    return WorkerRig(folder, server=ServerSettings(max_body_bytes=LIMIT_BYTES))


@asynccontextmanager
async def serving(rig: WorkerRig) -> AsyncIterator[int]:
    """The port of a real server around the rig's application."""
    server = uvicorn.Server(
        uvicorn.Config(
            rig.app, http=FleetHttpProtocol, ws="none", lifespan="off", log_config=None, access_log=False, port=0
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # signals are pytest's
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def talk(port: int, head: bytes, body: bytes) -> tuple[bytes, int]:
    """What the server answers to the end of the connection, and how much of the body it let us send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    num_sent = 0
    try:
        for start in range(0, len(body), 1 << 16):
            piece = body[start : start + (1 << 16)]
            writer.write(piece)
            await writer.drain()
            num_sent += len(piece)
    except ConnectionError:
        pass
    try:
        answer = await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
    return answer, num_sent


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_a_40_mb_body_gets_its_413_and_the_server_goes_on(rig: WorkerRig, framing: str) -> None:
    body = b"x" * 40_000_000
    head, content = HEAD + b"content-length: %d\r\n\r\n" % len(body), body
    if framing == "chunked":
        head, content = HEAD + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    async def main() -> tuple[bytes, bytes]:
        async with serving(rig) as port:
            refused, _ = await talk(port, head, content)
            after, _ = await talk(port, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"")
            return refused, after

    refused, after = asyncio.run(main())

    assert refused.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in refused
    assert after.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_never_ends_its_body_is_answered_and_let_go(rig: WorkerRig) -> None:
    head = HEAD + b"content-length: 99999999999\r\n\r\n"

    async def main() -> tuple[bytes, float]:
        async with serving(rig) as port:
            started = time.monotonic()
            answer, _ = await talk(port, head, b"x" * 1000)
            return answer, time.monotonic() - started

    answer, seconds = asyncio.run(main())

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert seconds < 10


def test_a_client_that_asks_first_is_refused_before_it_sends(rig: WorkerRig) -> None:
    head = HEAD + b"content-length: 40000000\r\nexpect: 100-continue\r\n\r\n"

    async def main() -> bytes:
        async with serving(rig) as port:
            answer, _ = await talk(port, head, b"")
            return answer

    answer = asyncio.run(main())

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
