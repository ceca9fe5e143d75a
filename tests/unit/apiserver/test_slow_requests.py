"""The slowest requests of a minute, and what is told of them."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apiserver.slow_requests import KEPT, WINDOW_S, SlowRequests
from ipc.metrics_page import create_metrics_segment
from ipc.notes import MAX_NOTES_BYTES, read_notes
from ops.fleet_view import SlowRequest
from tests.unit.apiserver.worker_rig import WorkerRig, make_model_folder


def shown(page: memoryview) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(read_notes(page) or b"[]")
    return entries


def test_the_slowest_are_kept_slowest_first() -> None:
    page = create_metrics_segment("x").view
    slow = SlowRequests(page)

    for number in range(3 * KEPT):
        duration_s = (number * 7) % (3 * KEPT) / 10
        if duration_s > slow.floor_s:
            slow.offer(duration_s, {"duration_s": duration_s})
    slow.flush()

    slowest = sorted((number / 10 for number in range(3 * KEPT)), reverse=True)[:KEPT]
    assert [fields["duration_s"] for fields in shown(page)] == slowest


def test_what_is_older_than_the_window_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    page = create_metrics_segment("x").view
    slow = SlowRequests(page)
    slow.offer(9.0, {"id": "old"})
    slow.flush()

    later_s = time.monotonic() + WINDOW_S + 1
    monkeypatch.setattr("apiserver.slow_requests.time", SimpleNamespace(monotonic=lambda: later_s))
    slow.offer(0.1, {"id": "young"})
    slow.flush()

    assert shown(page) == [{"id": "young"}]
    assert slow.floor_s == 0.0


def test_long_fields_cost_the_least_slow_their_place() -> None:
    page = create_metrics_segment("x").view
    slow = SlowRequests(page)
    for number in range(KEPT):
        slow.offer(number, {"id": number, "request_id": "x" * (MAX_NOTES_BYTES // 3)})

    slow.flush()

    assert [fields["id"] for fields in shown(page)] == [7, 6]


def test_a_request_tells_what_its_stages_took(tmp_path: Path) -> None:
    rig = WorkerRig(make_model_folder(tmp_path / "tiny"))
    rig.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
    rig.get("/v1/models")
    rig.services.metrics.slow.flush()

    (fields,) = shown(rig.page)

    request = SlowRequest(**{name: fields[name] for name in SlowRequest.__struct_fields__ if name in fields})
    assert (request.path, request.status, request.finish) == ("/v1/chat/completions", 200, "stop")
    assert request.completion_tokens > 0
    assert request.preprocess_ms > 0
    assert {"queue_ms", "prefill_ms", "decode_ms"} <= fields.keys()
    assert request.duration_ms >= request.preprocess_ms
    assert "hello" not in json.dumps(fields)
