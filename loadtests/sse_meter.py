"""When the tokens of one streamed answer arrived: time to the first, gaps between the others, what the end says.

Knows nothing of sockets and of Locust: it is handed one event of the stream at a time, with the moment that the event was
whole. The caller must hand events over as they arrive; Locust's `iter_lines` waits for 1024 bytes.
"""

from typing import Any

import msgspec


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None  # Any: their parts are only counted


class EventChoice(msgspec.Struct):
    delta: Delta | None = None
    text: str = ""
    """Of a completion."""

    @property
    def has_output(self) -> bool:
        if self.delta is None:
            return bool(self.text)
        return bool(self.delta.content or self.delta.reasoning_content or self.delta.tool_calls)


class EventUsage(msgspec.Struct):
    completion_tokens: int = 0


class Event(msgspec.Struct):
    choices: list[EventChoice] = []
    usage: EventUsage | None = None
    error: Any = None  # Any: servers differ in its shape


_decoder = msgspec.json.Decoder(Event)


class StreamMeter:
    """Times are of one clock, in seconds. `asked_at_s` is when the request was due: in an open loop that is not when it
    could be sent."""

    def __init__(self, asked_at_s: float) -> None:
        self.asked_at_s = asked_at_s
        self.first_at_s: float | None = None
        self.last_at_s = asked_at_s
        self.gaps_s: list[float] = []
        """Between events that carry output, in order."""
        self.num_tokens = 0
        """From the usage where the server tells, else the events that carry output."""
        self.is_done = False
        self.error: str | None = None
        self.text: list[str] = []

    def on_event(self, event: bytes | bytearray, now_s: float) -> None:
        """One event, its empty line included or not. What is no event of the API's becomes `error`."""
        data = _data_of(event)
        if not data:
            return  # a comment: servers send them so that proxies see a living stream
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            content = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            self.error = f"not an event of the API's: {error}"
            return
        if content.error is not None:
            self.error = str(content.error)
        if any(choice.has_output for choice in content.choices):
            self._on_output(now_s)
            self.text += [choice.delta.content or "" if choice.delta else choice.text for choice in content.choices]
        if content.usage is not None:
            self.num_tokens = content.usage.completion_tokens

    def _on_output(self, now_s: float) -> None:
        if self.first_at_s is None:
            self.first_at_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_at_s)
        self.last_at_s = now_s
        self.num_tokens += 1

    @property
    def num_events(self) -> int:
        """Those that carried output."""
        return 0 if self.first_at_s is None else len(self.gaps_s) + 1

    @property
    def ttft_s(self) -> float | None:
        """None: nothing came."""
        return None if self.first_at_s is None else self.first_at_s - self.asked_at_s

    @property
    def e2e_s(self) -> float:
        """Until the last token."""
        return self.last_at_s - self.asked_at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token behind the first, as vLLM counts; several tokens of one event count. None: there was one."""
        if self.first_at_s is None or self.num_tokens < 2:
            return None
        return (self.last_at_s - self.first_at_s) / (self.num_tokens - 1)

    @property
    def fault(self) -> str | None:
        """Why the answer is none; None: it is whole."""
        if self.error is not None:
            return self.error
        if not self.is_done:
            return "the stream ended without [DONE]"
        return None if self.first_at_s is not None else "no token came"


def _data_of(event: bytes | bytearray) -> bytes:
    """The `data` field: what its lines say, joined."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 2:
        return bytes(event[6:]).rstrip(b"\n")  # one line: nearly every event
    lines = [bytes(line) for line in event.splitlines()]
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
