"""A plain HTTP/1.1 client for completions and chats that writes down what it saw and judges nothing. A connection each.

Small on purpose: it shares no code with the server, and costs so little that hundreds of streams fit beside the fleet.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

END_OF_STREAM = "[DONE]"


@dataclass
class Seen:
    """One request as its client saw it. Times are CLOCK_MONOTONIC."""

    local_port: int = 0  # 0: not connected
    status: int = 0  # 0: no response at all
    retry_after: str | None = None
    text: dict[int, str] = field(default_factory=dict)  # by choice
    num_tokens: int | None = None  # by the usage
    errors: list[str] = field(default_factory=list)  # messages, of an error body or of error events
    is_done: bool = False  # the body came to its proper end
    sent_at_s: float = 0.0
    first_at_s: float = 0.0
    ended_at_s: float = 0.0
    longest_gap_s: float = 0.0  # between two events
    event_times_s: list[float] = field(default_factory=list)

    @property
    def ending(self) -> str:
        """finished, refused, failed (with an error that was told) or broken."""
        if self.status in (429, 503) and self.retry_after is not None:
            return "refused"
        if self.errors or self.status >= 400:
            return "failed"
        return "finished" if self.is_done else "broken"

    @property
    def num_events(self) -> int:
        return len(self.event_times_s)

    @property
    def ttft_s(self) -> float:
        return self.first_at_s - self.sent_at_s


async def complete(
    port: int,
    body: dict[str, Any],  # Any: the JSON of a completions request
    seen: Seen,
    *,
    path: str = "/v1/completions",
    headers: dict[str, str] | None = None,
    pause_s: float = 0.0,
    hesitation_s: float = 0.0,
) -> Seen:
    """POST a request and read it to whatever end. `pause_s` makes a slow reader: a wait behind every event;
    `hesitation_s` lies between connecting and sending."""
    seen.sent_at_s = time.monotonic()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        seen.local_port = writer.get_extra_info("sockname")[1]
        payload = json.dumps(body).encode()
        lines = [
            f"POST {path} HTTP/1.1", "host: fleet", "content-type: application/json", "connection: close",
            f"content-length: {len(payload)}", *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]  # fmt: skip
        if hesitation_s:
            await asyncio.sleep(hesitation_s)
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        await _read_response(reader, seen, pause_s)
    except (OSError, asyncio.IncompleteReadError, ValueError):
        pass  # cut: `is_done` stays False
    finally:
        seen.ended_at_s = time.monotonic()
        if writer is not None:
            writer.close()
    return seen


async def _read_response(reader: asyncio.StreamReader, seen: Seen, pause_s: float) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    seen.status = int(status_line.split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    seen.retry_after = headers.get("retry-after")
    if "content-length" in headers:
        _take_body(seen, json.loads(await reader.readexactly(int(headers["content-length"]))))
        return
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *events, rest = rest.split(b"\n\n")
        for event in events:
            _take_event(seen, event.decode().removeprefix("data: "))
        if pause_s:
            await asyncio.sleep(pause_s)
    await reader.readexactly(2)
    seen.is_done = seen.is_done and not rest


def _take_event(seen: Seen, data: str) -> None:
    now_s = time.monotonic()
    if data == END_OF_STREAM:
        seen.is_done = True
        return
    last_s = seen.ended_at_s or now_s
    seen.ended_at_s = now_s
    seen.event_times_s.append(now_s)
    seen.first_at_s = seen.first_at_s or now_s
    seen.longest_gap_s = max(seen.longest_gap_s, now_s - last_s)
    _take_body(seen, json.loads(data), is_event=True)


def _take_body(seen: Seen, body: dict[str, Any], *, is_event: bool = False) -> None:
    """One JSON object: a whole answer, an event or an error."""
    if "error" in body:
        seen.errors.append(body["error"]["message"])
    for choice in body.get("choices", ()):
        index = choice["index"]
        seen.text[index] = seen.text.get(index, "") + _text_of(choice)
    if body.get("usage"):
        seen.num_tokens = body["usage"].get("completion_tokens")
    if not is_event:
        seen.first_at_s = time.monotonic()
        seen.is_done = True


def _text_of(choice: dict[str, Any]) -> str:
    """Of a completion, or of a chat's message or delta."""
    if "text" in choice:
        return str(choice["text"])
    part = choice["delta"] if "delta" in choice else choice["message"]
    return part.get("content") or ""
