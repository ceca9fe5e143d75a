import json
import logging
import sys

from ops.logs import JsonFormatter, TextFormatter


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
