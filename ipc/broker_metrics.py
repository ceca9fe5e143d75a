"""What the broker counts: refusals as they happen, its queue four times a second."""

from collections.abc import Collection

from ipc.admission import REFUSALS, EngineLoad
from ipc.metrics_page import Instrument, MetricsWriter

INSTRUMENTS = (
    Instrument("counter", "vllm:admission_rejections", "Requests refused by admission, by bound."),
    Instrument("gauge", "tokenfleet:broker_requests_in_flight", "Requests the broker has placed and not seen end."),
    Instrument("gauge", "tokenfleet:broker_queue_depth", "Requests placed that no engine has started."),
    Instrument("gauge", "tokenfleet:broker_queue_tokens", "Prompt tokens of those."),
    Instrument("gauge", "tokenfleet:broker_engines", "Engines connected."),
)


class BrokerMetrics:
    """Handles, looked up once."""

    def __init__(self, view: memoryview, model_name: str) -> None:
        writer = MetricsWriter(view, INSTRUMENTS)
        self.rejections = {
            reason: writer.counter("vllm:admission_rejections", model_name=model_name, reason=reason)
            for reason in REFUSALS
        }
        self._in_flight = writer.gauge("tokenfleet:broker_requests_in_flight")
        self._waiting = writer.gauge("tokenfleet:broker_queue_depth")
        self._waiting_tokens = writer.gauge("tokenfleet:broker_queue_tokens")
        self._num_engines = writer.gauge("tokenfleet:broker_engines")

    def publish(self, engines: Collection[EngineLoad]) -> None:
        self._in_flight.set(sum(len(engine.in_flight) for engine in engines))
        self._waiting.set(sum(engine.num_waiting for engine in engines))
        self._waiting_tokens.set(sum(engine.waiting_tokens for engine in engines))
        self._num_engines.set(len(engines))
