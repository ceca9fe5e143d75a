"""The worker's instruments: vLLM's names, labels and buckets where vLLM has them, ours under `tokenfleet:`."""

from dataclasses import dataclass

from apiserver.slow_requests import SlowRequests
from apiserver.tokenizer_library import CacheStats
from ipc.metrics_page import Counter, Histogram, Instrument, MetricsWriter, Summary, Tally

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
HTTP_FINE_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others would be labels of clients
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
SHED_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens", "no_engine", "deadline", "overflow", "slow_client")
FAILURE_REASONS = (*SHED_REASONS[:-1], "engine_lost", "engine_error", "ring_corrupt", "crashed", "too_long", "grammar")
CACHE_SOURCES = ("device", "host", "p2p", "disk", "external_unspecified")


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1-2-5 series up to the context."""
    bounds = (mantissa * 10.0**exponent for exponent in range(9) for mantissa in (1, 2, 5))
    return tuple(bound for bound in bounds if bound <= max_model_len)


def instruments(model_name: str, max_model_len: int, worker: int) -> list[Instrument]:
    model = (("model_name", model_name), ("engine", "0"))
    of_worker = (("worker", str(worker)),)
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
        Instrument("counter", "vllm:prompt_tokens_by_source", "Prompt tokens, by where their K/V came from.", model),
        Instrument("counter", "vllm:prompt_tokens_cached_by_source", "Cached prompt tokens, by the cache.", model),
        Instrument("counter", "vllm:mm_cache_queries", "Multi-modal items looked up: none are served.", model),
        Instrument("counter", "vllm:mm_cache_hits", "Multi-modal items found: none are served.", model),
        Instrument("counter", "vllm:request_success", "Requests that ended, by reason.", model),
        Instrument("counter", "http_requests", "HTTP requests, by method, handler and status."),
        Instrument("summary", "http_request_size_bytes", "Declared length of request bodies, by handler."),
        Instrument("summary", "http_response_size_bytes", "Declared length of responses, by handler; streams are 0."),
        Instrument("histogram", "http_request_duration_seconds", "HTTP latency by handler.", (), HTTP_S),
        Instrument("histogram", "http_request_duration_highr_seconds", "HTTP latency, finely.", (), HTTP_FINE_S),
        Instrument("histogram", "tokenfleet:tokenize_seconds", "Rendering and tokenizing one prompt.", (), STAGE_S),
        Instrument("counter", "tokenfleet:shed", "Requests refused or cut, by reason."),
        Instrument(
            "counter", "tokenfleet:streams_resumed", "Streams that went on in another engine than they were in."
        ),
        Instrument("counter", "tokenfleet:stream_failures", "Choices that ended with an error, by reason."),
        Instrument("counter", "tokenfleet:deadline_exceeded", "Requests given up because their deadline had passed."),
        Instrument("gauge", "tokenfleet:open_connections", "Client connections open.", of_worker),
        Instrument("gauge", "tokenfleet:open_streams", "Choices in flight.", of_worker),
        Instrument("gauge", "tokenfleet:oldest_stream_age_seconds", "Age of the oldest choice in flight.", of_worker),
        Instrument(
            "histogram", "tokenfleet:event_loop_lag_seconds", "Lateness of the worker's timer.", of_worker, STAGE_S
        ),
        Instrument("counter", "tokenfleet:worker_requests", "HTTP requests of one worker, without probes.", of_worker),
        Instrument("counter", "tokenfleet:worker_generation_tokens", "Tokens one worker handed out.", of_worker),
        Instrument("counter", "tokenfleet:tokenizer_cache_hits", "Text segments found in the cache.", of_worker),
        Instrument("counter", "tokenfleet:tokenizer_cache_misses", "Text segments not found in the cache.", of_worker),
        Instrument("gauge", "tokenfleet:tokenizer_cache_bytes", "Size of the tokenizer's cache.", of_worker),
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


@dataclass(frozen=True, slots=True)
class HttpHandles:
    """What one method, handler and status counts into."""

    requests: Counter
    duration: Histogram
    request_bytes: Summary
    response_bytes: Summary


class WorkerMetrics:
    """Handles, looked up once. Latencies are recorded per choice, tokens and requests as vLLM counts them."""

    def __init__(self, view: memoryview, model_name: str, max_model_len: int, *, worker: int = 0) -> None:
        self.slow = SlowRequests(view)
        self._writer = writer = MetricsWriter(view, instruments(model_name, max_model_len, worker))
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
        self._by_source = {
            source: writer.counter("vllm:prompt_tokens_by_source", source=source)
            for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
        }
        self._cached_by_source = {
            source: writer.counter("vllm:prompt_tokens_cached_by_source", source=source) for source in CACHE_SOURCES
        }
        writer.counter("vllm:mm_cache_queries")
        writer.counter("vllm:mm_cache_hits")
        self.generation_tokens = writer.counter("vllm:generation_tokens")
        self.streams_resumed = writer.counter("tokenfleet:streams_resumed")
        self.tokenize = writer.histogram("tokenfleet:tokenize_seconds")
        self.deadline_exceeded = writer.counter("tokenfleet:deadline_exceeded")
        self.loop_lag = writer.histogram("tokenfleet:event_loop_lag_seconds")
        self._ended = {
            reason: writer.counter("vllm:request_success", finished_reason=reason) for reason in FINISH_REASONS
        }
        self._shed = {reason: writer.counter("tokenfleet:shed", reason=reason) for reason in SHED_REASONS}
        self._failures = {
            reason: writer.counter("tokenfleet:stream_failures", reason=reason) for reason in FAILURE_REASONS
        }
        self._http: dict[tuple[str, str, int], HttpHandles] = {}
        self._http_fine = writer.histogram("http_request_duration_highr_seconds")
        self._open_connections = writer.gauge("tokenfleet:open_connections")
        self._open_streams = writer.gauge("tokenfleet:open_streams")
        self._oldest_stream_age = writer.gauge("tokenfleet:oldest_stream_age_seconds")
        self._requests = Tally(writer.counter("tokenfleet:worker_requests"), self._http_fine.count)
        self._tokens = Tally(writer.counter("tokenfleet:worker_generation_tokens"), self.generation_tokens.value)
        self._cache_hits = Tally(writer.counter("tokenfleet:tokenizer_cache_hits"))
        self._cache_misses = Tally(writer.counter("tokenfleet:tokenizer_cache_misses"))
        self._cache_bytes = writer.gauge("tokenfleet:tokenizer_cache_bytes")

    def on_drained(self, num_tokens: int) -> None:
        """The engines had made this many tokens, and all of them are handed out."""
        self.generation_tokens.inc(num_tokens)
        self.itl.flush()

    def on_prompt(self, num_tokens: int, num_cached_tokens: int) -> None:
        """One prompt was computed, but for what the prefix cache had of it."""
        self.prompt_tokens.inc(num_tokens)
        self._by_source["local_compute"].inc(num_tokens - num_cached_tokens)
        if num_cached_tokens:
            self.prompt_tokens_cached.inc(num_cached_tokens)
            self._by_source["local_cache_hit"].inc(num_cached_tokens)
            self._cached_by_source["device"].inc(num_cached_tokens)

    def on_beat(self, num_connections: int, num_streams: int, oldest_age_s: float, cache: CacheStats | None) -> None:
        """What need not be counted as it happens: looked at with every beat of the worker."""
        self.itl.flush()
        self.slow.flush()
        self._open_connections.set(num_connections)
        self._open_streams.set(num_streams)
        self._oldest_stream_age.set(oldest_age_s)
        self._requests.grow_to(self._http_fine.count)
        self._tokens.grow_to(self.generation_tokens.value)
        if cache is not None:
            self._cache_hits.grow_to(cache.hits)
            self._cache_misses.grow_to(cache.misses)
            self._cache_bytes.set(cache.bytes)

    def ended(self, reason: str) -> Counter:
        """`reason`: stop, length, abort or error."""
        if reason not in self._ended:
            self._ended[reason] = self._writer.counter("vllm:request_success", finished_reason=reason)
        return self._ended[reason]

    def on_failure(self, reason: str) -> None:
        """A choice ended with an error; `reason` is that of its StreamError."""
        if reason in SHED_REASONS:
            self.shed(reason).inc()
        if reason == "deadline":
            self.deadline_exceeded.inc()
        if reason not in self._failures:
            self._failures[reason] = self._writer.counter("tokenfleet:stream_failures", reason=reason)
        self._failures[reason].inc()

    def shed(self, reason: str) -> Counter:
        if reason not in self._shed:
            self._shed[reason] = self._writer.counter("tokenfleet:shed", reason=reason)
        return self._shed[reason]

    def on_http(
        self, method: str, handler: str, status: int, duration_s: float, request_bytes: int, response_bytes: int
    ) -> None:
        """One request has been answered. Lengths are those that were declared, 0 when none was."""
        handles = self._http.get((method, handler, status)) or self._http_handles(method, handler, status)
        handles.requests.inc()
        handles.duration.observe(duration_s)
        handles.request_bytes.observe(request_bytes)
        handles.response_bytes.observe(response_bytes)
        self._http_fine.observe(duration_s)

    def _http_handles(self, method: str, handler: str, status: int) -> HttpHandles:
        method_label = method if method in METHODS else "other"
        handles = HttpHandles(
            requests=self._writer.counter(
                "http_requests", method=method_label, handler=handler, status=f"{status // 100}xx"
            ),
            duration=self._writer.histogram("http_request_duration_seconds", method=method_label, handler=handler),
            request_bytes=self._writer.summary("http_request_size_bytes", handler=handler),
            response_bytes=self._writer.summary("http_response_size_bytes", handler=handler),
        )
        if method in METHODS:  # a client may make up methods: they share the handles, and are looked up each time
            self._http[method, handler, status] = handles
        return handles
