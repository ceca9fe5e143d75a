"""Spans as a collector gets them, through the real exporter."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from apiserver.preload import Preloaded
from apiserver.tracing import STAGES, RequestTracer
from config.checks import faults_of
from config.load import load
from tests.unit.apiserver.collector import Collector
from tests.unit.apiserver.worker_rig import WorkerRig

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"messages": [{"role": "user", "content": "a secret"}], "max_tokens": 7, "temperature": 0.5, "top_p": 0.75}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def rig(folder: Path, preloaded: Preloaded, collector: Collector) -> WorkerRig:
    return WorkerRig(folder, preloaded=preloaded, tracer=RequestTracer(collector.endpoint, model_name="tiny", worker=0))


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def close(rig: WorkerRig) -> None:
    assert rig.services.tracer is not None
    rig.services.tracer.close()


def test_a_request_is_a_span_with_vllms_attributes(rig: WorkerRig, collector: Collector) -> None:
    rig.post("/v1/chat/completions", CHAT, headers={"x-request-id": "r-1"})
    close(rig)

    (span,) = collector.named("llm_request")
    found = attributes(span)
    assert found["gen_ai.request.id"] == "r-1"
    assert found["gen_ai.response.model"] == "tiny"
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.request.n"]) == (7, 1)
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.top_p"]) == (0.5, 0.75)
    assert found["gen_ai.usage.completion_tokens"] > 0
    assert found["gen_ai.latency.e2e"] > 0
    assert found["http.response.status_code"] == 200
    assert "a secret" not in str(collector.spans)


def test_stages_are_its_children_one_after_the_other(rig: WorkerRig, collector: Collector) -> None:
    rig.post("/v1/chat/completions", CHAT)
    close(rig)

    (span,) = collector.named("llm_request")
    stages = [collector.named(stage)[0] for stage in STAGES]
    assert {stage.parent_span_id for stage in stages} == {span.span_id}
    assert stages[0].start_time_unix_nano == span.start_time_unix_nano
    assert all(before.end_time_unix_nano == after.start_time_unix_nano for before, after in pairwise(stages))


def test_the_callers_trace_goes_on(rig: WorkerRig, collector: Collector) -> None:
    rig.post("/v1/chat/completions", CHAT, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    close(rig)

    (span,) = collector.named("llm_request")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)


def test_a_trace_the_caller_does_not_sample_is_not_sent(rig: WorkerRig, collector: Collector) -> None:
    rig.post("/v1/chat/completions", CHAT, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    close(rig)

    assert collector.spans == []


def test_refused_requests_are_spans_and_probes_are_not(rig: WorkerRig, collector: Collector) -> None:
    rig.post("/v1/chat/completions", {"messages": []})
    rig.get("/health")
    rig.get("/metrics")
    close(rig)

    assert [span.name for span in collector.spans] == ["POST /v1/chat/completions"]
    assert attributes(collector.spans[0])["http.response.status_code"] == 400


def test_an_endpoint_that_is_no_url_is_a_fault() -> None:
    faults = faults_of(load({"otlp_traces_endpoint": "collector:4317"}, {}, None))

    assert len(faults) == 1
    assert "not an http or https URL" in faults[0]
