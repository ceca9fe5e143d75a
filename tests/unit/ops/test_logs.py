import asyncio
import json
import logging
import sys

from ops.logs import JsonFormatter, LineHandler, TextFormatter


class Writes(list[str]):
    """A stream that shows how it was written to."""

    def write(self, text: str) -> None:
        self.append(text)


def handler_of(stream: Writes) -> LineHandler:
    handler = LineHandler(stream)  # type: ignore[arg-type]  # of a text stream it uses `write` alone
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def info(text: str) -> logging.LogRecord:
    return logging.LogRecord("ops", logging.INFO, "file", 1, text, None, None)


def record(event: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("ops", logging.WARNING, "file", 1, event, None, None)
    made.created = 0.125
    vars(made).update(fields)
    return made


def test_text_is_time_level_role_event_and_fields() -> None:
    line = TextFormatter("worker 0").format(record("request finished", status=200, ttft_s=0.0123456789))

    assert line == "1970-01-01T00:00:00.125Z warning worker 0: request finished status=200 ttft_s=0.0123457"


def test_a_field_cannot_forge_a_second_line_or_field() -> None:
    line = TextFormatter("broker").format(record("refused", request_id='x\n1970 error broker: forged a="b"'))

    assert "\n" not in line
    assert line.endswith(r'request_id="x\n1970 error broker: forged a=\"b\""')


def test_json_is_one_object_whose_own_keys_no_field_replaces() -> None:
    line = JsonFormatter("engine 0").format(record("engine ready", num_blocks=7, level="forged", path=object))

    content = json.loads(line)
    assert content["event"] == "engine ready" and content["role"] == "engine 0" and content["num_blocks"] == 7
    assert content["level"] == "warning" and content["time"] == "1970-01-01T00:00:00.125Z"


def test_a_traceback_is_kept() -> None:
    failed = record("role crashed")
    try:
        raise ValueError("boom")
    except ValueError:
        failed.exc_info = sys.exc_info()

    assert "ValueError: boom" in TextFormatter("broker").format(failed)
    assert "ValueError: boom" in json.loads(JsonFormatter("broker").format(failed))["traceback"]


def test_lines_of_one_turn_of_a_loop_leave_in_one_write() -> None:
    writes = Writes()
    handler = handler_of(writes)

    async def two_turns() -> None:
        for turn in range(2):
            for number in range(3):
                handler.handle(info(f"{turn}{number}"))
            await asyncio.sleep(0)

    for _ in range(2):  # also of a second loop
        asyncio.run(two_turns())

    assert writes == ["00\n01\n02\n", "10\n11\n12\n"] * 2


def test_without_a_loop_and_from_a_warning_on_a_line_leaves_at_once() -> None:
    writes = Writes()
    handler = handler_of(writes)

    handler.handle(info("alone"))

    async def warn() -> None:
        handler.handle(info("before"))
        handler.handle(record("bad"))
        assert writes[1:] == ["before\nbad\n"]

    asyncio.run(warn())
    assert writes == ["alone\n", "before\nbad\n"]


def test_no_write_is_longer_than_a_pipe_takes_whole() -> None:
    writes = Writes()
    handler = handler_of(writes)
    lines = ["x" * 1500, "ü" * 1200, "y" * 1500, "z" * 9000, "end"]

    async def log() -> None:
        for line in lines:
            handler.handle(info(line))

    asyncio.run(log())
    handler.flush()

    assert "".join(writes) == "".join(line + "\n" for line in lines)
    assert [len(text.encode()) for text in writes] == [3902, 1501, 9001, 4]
