"""One OpenTelemetry span per request, its stages as children, made when the request has ended; exported by OTLP over HTTP.

Nothing is measured for it: the numbers are those of the log line. The caller's `traceparent` is the parent, and its decision
to sample holds. Names and attributes are vLLM's (vllm/tracing/utils.py). Needs the extra `otel`; without an endpoint this
module is never imported. The exporter's thread belongs to the worker: build after the fork.
"""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from apiserver.generation import GenerationRequest

EXPORT_TIMEOUT_S = 5.0
STAGES = ("preprocess", "queue", "prefill", "decode")  # one after the other, but for what lies between the processes

_ATTRIBUTES = {  # of the log line's fields
    "prompt_tokens": "gen_ai.usage.prompt_tokens",
    "completion_tokens": "gen_ai.usage.completion_tokens",
    "cached_tokens": "gen_ai.usage.cached_tokens",
    "num_choices": "gen_ai.usage.num_sequences",
    "finish": "gen_ai.response.finish_reasons",
    "status": "http.response.status_code",
    "method": "http.request.method",
    "path": "url.path",
}
_LATENCIES = {  # milliseconds become seconds
    "ttft_ms": "gen_ai.latency.time_to_first_token",
    "duration_ms": "gen_ai.latency.e2e",
    "queue_ms": "gen_ai.latency.time_in_queue",
    "prefill_ms": "gen_ai.latency.time_in_model_prefill",
    "decode_ms": "gen_ai.latency.time_in_model_decode",
}


class RequestTracer:
    def __init__(self, endpoint: str, *, model_name: str, worker: int) -> None:
        """`endpoint` is the collector's whole URL, as http://collector:4318/v1/traces."""
        resource = Resource.create({"service.name": "tokenfleet", "service.instance.id": f"worker-{worker}"})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tokenfleet")
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def record(self, headers: list[tuple[bytes, bytes]], fields: Mapping[str, Any], request: object) -> None:
        """A request that ends now; `fields` are those of its log line, `request` its GenerationRequest if it came so far."""
        end_ns = time.time_ns()
        start_ns = end_ns - _nanoseconds(fields["duration_ms"])
        name = "llm_request" if "finish" in fields else f"{fields['method']} {fields['path']}"
        span = self._tracer.start_span(
            name,
            self._parent(headers),
            SpanKind.SERVER,
            attributes=self._attributes(fields, request),
            start_time=start_ns,
        )
        if fields["status"] >= 500:
            span.set_status(Status(StatusCode.ERROR, str(fields.get("error", ""))))
        if span.is_recording():
            self._record_stages(set_span_in_context(span), start_ns, fields)
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left; at most EXPORT_TIMEOUT_S when the collector does not answer."""
        self._provider.force_flush(int(EXPORT_TIMEOUT_S * 1e3))
        self._provider.shutdown()

    def _record_stages(self, parent: Context, start_ns: int, fields: Mapping[str, Any]) -> None:
        for stage in STAGES:
            milliseconds = fields.get(f"{stage}_ms")
            if milliseconds is None:
                return  # it never came so far
            stage_end_ns = start_ns + _nanoseconds(milliseconds)
            self._tracer.start_span(stage, parent, start_time=start_ns).end(stage_end_ns)
            start_ns = stage_end_ns

    def _parent(self, headers: list[tuple[bytes, bytes]]) -> Context:
        wanted = (b"traceparent", b"tracestate")
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in wanted}
        return self._propagator.extract(carrier)

    def _attributes(self, fields: Mapping[str, Any], request: object) -> dict[str, Any]:
        attributes = {name: fields[field] for field, name in _ATTRIBUTES.items() if field in fields}
        attributes |= {name: fields[field] / 1e3 for field, name in _LATENCIES.items() if field in fields}
        attributes["gen_ai.request.id"] = fields["request_id"]
        if isinstance(request, GenerationRequest):
            attributes["gen_ai.response.model"] = self._model_name
            attributes["gen_ai.request.n"] = request.n
            attributes["gen_ai.request.max_tokens"] = max(request.max_tokens)
            attributes["gen_ai.request.temperature"] = request.sampling.temperature
            attributes["gen_ai.request.top_p"] = request.sampling.top_p
        return attributes


def _nanoseconds(milliseconds: float) -> int:
    return int(milliseconds * 1e6)
