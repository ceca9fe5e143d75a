"""One event per line on stderr, for every role: constant text, fields apart through `extra`.

    text  2026-01-31T12:00:00.123Z info  worker 0: request finished method=POST status=200
    json  {"time":"...","level":"info","role":"worker 0","event":"request finished","method":"POST","status":200}

Lines leave whole, so that those of several processes never mix. Inside an event loop those of one turn leave together when
it is over, for a write costs more than a line does; a warning, or worse, leaves at once. Prompts and completions are never
logged.
"""

import asyncio
import json
import logging
import re
import select
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, TextIO

import msgspec

_NUM_OWN_ATTRIBUTES = len(vars(logging.makeLogRecord({})))  # of every record; what came through `extra` stands behind
_LIBRARIES_ATTRIBUTES = frozenset({"color_message"})  # uvicorn's
_PLAIN_WORD = re.compile(r"[!#-<>-~]+")  # printable ASCII but space, quote and equals sign
_QUIET_LIBRARIES = ("asyncio", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "fastokens")


def configure(role: str, *, level: str, log_format: Literal["text", "json"]) -> None:
    """Call once per process, and again after a fork that changes the role."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role) if log_format == "json" else TextFormatter(role))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # What no line shows need not be looked up for every record (Python's logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class LineHandler(logging.StreamHandler[TextIO]):
    """Its stream is line-buffered, as stderr always is: what is written in one piece leaves in one piece."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []  # that wait for the end of a turn of `_loop`
        self._loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + "\n")
            if record.levelno >= logging.WARNING or not self._flushes_soon():
                self.flush()
        except RecursionError:  # as in logging.StreamHandler
            raise
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """`logging.shutdown` calls it, too."""
        self.acquire()
        try:
            lines, self._lines, self._loop = self._lines, [], None
            for piece in _pieces(lines):
                self.stream.write(piece)
        finally:
            self.release()

    def _flushes_soon(self) -> bool:
        """Whether the loop that runs here will do it; False where there is none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self.flush)
        return True


def _pieces(lines: list[str]) -> Iterator[str]:
    """Of whole lines, none so long that a pipe might take it apart, unless a line is by itself."""
    piece, num_bytes = "", 0
    for line in lines:
        size = len(line) if line.isascii() else len(line.encode())
        if piece and num_bytes + size > select.PIPE_BUF:
            yield piece
            piece, num_bytes = "", 0
        piece += line
        num_bytes += size
    if piece:
        yield piece


class TextFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower():<7} {self._role}: {record.getMessage()}{fields}"
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line = {
            **_fields(record),
            "time": _time(record),
            "level": record.levelname.lower(),
            "role": self._role,
            "event": record.getMessage(),
        }
        trace = _traceback(self, record)
        if trace:
            line["traceback"] = trace
        return msgspec.json.encode(line, enc_hook=str).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:  # Any: a field is whatever its author logged
    extra = islice(vars(record).items(), _NUM_OWN_ATTRIBUTES, None)
    return {name: value for name, value in extra if name not in _LIBRARIES_ATTRIBUTES}


def _time(record: logging.LogRecord) -> str:
    seconds = int(record.created)
    return f"{_second(seconds)}.{int((record.created - seconds) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _shown(value: object) -> str:
    """Bare when it is one word, quoted otherwise: a line is split at its spaces, and never ends early."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if isinstance(value, int) or (text.isalnum() and text.isascii()) or _PLAIN_WORD.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
