"""One event per line on stderr, for every role: constant text, fields apart through `extra`.

    text  2026-01-31T12:00:00.123Z info  worker 0: request finished method=POST status=200
    json  {"time":"...","level":"info","role":"worker 0","event":"request finished","method":"POST","status":200}

A line leaves in one write call, so that lines of several processes never mix. Prompts and completions are never logged.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
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
    """Its stream is line-buffered, as stderr always is: to write a line is to flush it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
        except RecursionError:  # as in logging.StreamHandler
            raise
        except Exception:
            self.handleError(record)


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
    return f"{datetime.fromtimestamp(record.created, UTC).isoformat(timespec='milliseconds')[:-6]}Z"


def _shown(value: object) -> str:
    """Bare when it is one word, quoted otherwise: a line is split at its spaces, and never ends early."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if isinstance(value, int):
        return text
    if (text.isalnum() and text.isascii()) or _PLAIN_WORD.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
