"""The worker's instruments: vLLM's names, labels and buckets where vLLM has them, ours under `tokenfleet:`."""

from ipc.metrics_page import Counter, Histogram, Instrument, MetricsWriter

TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
COUNT_N = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS_N = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
STAGE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
HTTP_S = (0.1, 0.5, 1.0)


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1-2-5 series up to the context."""
    bounds = (mantissa * 10.0**exponent for exponent in range(9) for mantissa in (1, 2, 5))
    return tuple(bound for bound in bounds if bound <= max_model_len)


def instruments(model_name: str, max_model_len: int) -> list[Instrument]:
    model = (("model_name", model_name), ("engine", "0"))
    tokens = token_buckets(max_model_len)

    def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Instrument:
        return Instrument("histogram", name, text, model, buckets)

    return [
        histogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.", TTFT_S),
        histogram("vllm:inter_token_latency_seconds", "Inter-token latency in seconds.", ITL_S),
        histogram("vllm:request_time_per_output_token_seconds", "Mean time per output token of a request.", ITL_S),
        histogram("vllm:e2e_request_latency_seconds", "End to end request latency in seconds.", LATENCY_S),
        histogram("vllm:request_queue_time_seconds", "Time spent waiting in the engine.", LATENCY_S),
        histogram("vllm:request_prefill_time_seconds", "Time from the first schedule to the first token.", LATENCY_S),
        histogram("vllm:request_decode_time_seconds", "Time from the first to the last token.", LATENCY_S),
        histogram("vllm:request_inference_time_seconds", "Prefill and decode time.", LATENCY_S),
        histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", tokens),
        histogram("vllm:request_generation_tokens", "Generated tokens of a request.", tokens),
        histogram("vllm:request_max_num_generation_tokens", "Largest number of generated tokens of a request.", tokens),
        histogram("vllm:request_params_max_tokens", "The max_tokens of a request.", tokens),
        histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a request that were computed.", tokens),
        histogram("vllm:request_params_n", "The n of a request.", COUNT_N),
        histogram("vllm:request_num_preemptions", "Times a request was preempted.", PREEMPTIONS_N),
        Instrument("counter", "vllm:prompt_tokens", "Prompt tokens processed.", model),
        Instrument("counter", "vllm:prompt_tokens_cached", "Prompt tokens found in the prefix cache.", model),
        Instrument("counter", "vllm:generation_tokens", "Tokens generated.", model),
        Instrument("counter", "vllm:request_success", "Requests that ended, by reason.", model),
        Instrument("counter", "http_requests", "HTTP requests, by method, handler and status."),
        Instrument("histogram", "http_request_duration_seconds", "HTTP latency by handler.", (), HTTP_S),
        Instrument("gauge", "tokenfleet:open_connections", "Client connections open."),
        Instrument("gauge", "tokenfleet:open_streams", "Choices in flight."),
        Instrument("histogram", "tokenfleet:tokenize_seconds", "Rendering and tokenizing one prompt.", (), STAGE_S),
        Instrument("histogram", "tokenfleet:event_loop_lag_seconds", "Lateness of the worker's timer.", (), STAGE_S),
        Instrument("counter", "tokenfleet:shed", "Requests refused or cut, by reason."),
        Instrument(
            "counter", "tokenfleet:streams_resumed", "Streams that went on in another engine than they were in."
        ),
    ]


class RunHistogram:
    """A histogram whose observations come in runs of equal ones: the tokens of one drain have waited equally long."""

    __slots__ = ("_histogram", "_times", "_value")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._value, self._times = 0.0, 0

    def observe(self, value: float, times: int) -> None:
        """Shows after the next `flush`, or when another value comes."""
        if value == self._value:
            self._times += times
            return
        self.flush()
        self._value, self._times = value, times

    def flush(self) -> None:
        if self._times:
            self._histogram.observe_many(self._value, self._times)
            self._times = 0


class WorkerMetrics:
    """Handles, looked up once. Latencies are recorded per choice, tokens and requests as vLLM counts them."""

    def __init__(self, view: memoryview, model_name: str, max_model_len: int) -> None:
        self._writer = writer = MetricsWriter(view, instruments(model_name, max_model_len))
        self.ttft = writer.histogram("vllm:time_to_first_token_seconds")
        self.itl = RunHistogram(writer.histogram("vllm:inter_token_latency_seconds"))
        self.time_per_token = writer.histogram("vllm:request_time_per_output_token_seconds")
        self.e2e = writer.histogram("vllm:e2e_request_latency_seconds")
        self.queue_time = writer.histogram("vllm:request_queue_time_seconds")
        self.prefill_time = writer.histogram("vllm:request_prefill_time_seconds")
        self.decode_time = writer.histogram("vllm:request_decode_time_seconds")
        self.inference_time = writer.histogram("vllm:request_inference_time_seconds")
        self.request_prompt_tokens = writer.histogram("vllm:request_prompt_tokens")
        self.request_generation_tokens = writer.histogram("vllm:request_generation_tokens")
        self.request_max_generation_tokens = writer.histogram("vllm:request_max_num_generation_tokens")
        self.params_max_tokens = writer.histogram("vllm:request_params_max_tokens")
        self.request_computed_tokens = writer.histogram("vllm:request_prefill_kv_computed_tokens")
        self.request_preemptions = writer.histogram("vllm:request_num_preemptions")
        self.params_n = writer.histogram("vllm:request_params_n")
        self.prompt_tokens = writer.counter("vllm:prompt_tokens")
        self.prompt_tokens_cached = writer.counter("vllm:prompt_tokens_cached")
        self.generation_tokens = writer.counter("vllm:generation_tokens")
        self.streams_resumed = writer.counter("tokenfleet:streams_resumed")
        self.open_connections = writer.gauge("tokenfleet:open_connections")
        self.open_streams = writer.gauge("tokenfleet:open_streams")
        self.tokenize = writer.histogram("tokenfleet:tokenize_seconds")
        self.loop_lag = writer.histogram("tokenfleet:event_loop_lag_seconds")
        self._ended: dict[str, Counter] = {}
        self._shed: dict[str, Counter] = {}
        self._http: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def on_drained(self, num_tokens: int) -> None:
        """The engines had made this many tokens, and all of them are handed out."""
        self.generation_tokens.inc(num_tokens)
        self.itl.flush()

    def ended(self, reason: str) -> Counter:
        """`reason`: stop, length, abort or error."""
        if reason not in self._ended:
            self._ended[reason] = self._writer.counter("vllm:request_success", finished_reason=reason)
        return self._ended[reason]

    def shed(self, reason: str) -> Counter:
        if reason not in self._shed:
            self._shed[reason] = self._writer.counter("tokenfleet:shed", reason=reason)
        return self._shed[reason]

    def on_http(self, method: str, handler: str, status: int, duration_s: float) -> None:
        key = (method, handler, status)
        if key not in self._http:
            group = f"{status // 100}xx"
            self._http[key] = (
                self._writer.counter("http_requests", method=method, handler=handler, status=group),
                self._writer.histogram("http_request_duration_seconds", method=method, handler=handler),
            )
        counter, histogram = self._http[key]
        counter.inc()
        histogram.observe(duration_s)
