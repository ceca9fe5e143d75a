"""What an engine counts: vLLM's names, labels and buckets where vLLM has the thing. Written by the step loop.

Queue, prefill and decode times of requests travel in their Finish and are counted by the worker, not here.
"""

from ipc.metrics_page import Instrument, MetricsWriter

_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)

INSTRUMENTS = (
    Instrument("gauge", "vllm:num_requests_running", "Requests in the running batch."),
    Instrument("gauge", "vllm:num_requests_waiting", "Requests waiting for a place in the batch."),
    Instrument("gauge", "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", combine="max"),
    Instrument("gauge", "vllm:cache_config_info", "Facts of the KV cache, as labels.", combine="max"),
    Instrument("counter", "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    Instrument("counter", "vllm:prefix_cache_hits", "Prompt tokens served by the prefix cache."),
    Instrument("counter", "vllm:num_preemptions", "Times a running request gave its KV blocks back."),
    Instrument("histogram", "vllm:iteration_tokens_total", "Tokens computed per step.", buckets=_ITERATION_BUCKETS),
    Instrument("histogram", "tokenfleet:engine_step_seconds", "Duration of a step.", buckets=_STEP_BUCKETS),
)


class EngineMetrics:
    """Handles into one engine's metrics page, looked up once."""

    def __init__(self, view: memoryview, *, model_name: str, engine: int, block_size: int, num_blocks: int) -> None:
        writer = MetricsWriter(view, INSTRUMENTS)
        labels = {"model_name": model_name, "engine": str(engine)}
        self._running = writer.gauge("vllm:num_requests_running", **labels)
        self._waiting = writer.gauge("vllm:num_requests_waiting", **labels)
        self._kv_usage = writer.gauge("vllm:kv_cache_usage_perc", **labels)
        self._prefix_queries = writer.counter("vllm:prefix_cache_queries", **labels)
        self._prefix_hits = writer.counter("vllm:prefix_cache_hits", **labels)
        self._preemptions = writer.counter("vllm:num_preemptions", **labels)
        self._iteration_tokens = writer.histogram("vllm:iteration_tokens_total", **labels)
        self._step_seconds = writer.histogram("tokenfleet:engine_step_seconds", **labels)
        facts = {"block_size": str(block_size), "num_gpu_blocks": str(num_blocks)}
        writer.gauge("vllm:cache_config_info", **labels, **facts).set(1.0)

    def on_step(self, num_tokens: int, duration_s: float) -> None:
        """One forward pass and what it took with everything around it."""
        self._iteration_tokens.observe(num_tokens)
        self._step_seconds.observe(duration_s)

    def on_counts(self, num_preemptions: int, prefix_queries: int, prefix_hits: int) -> None:
        """What was added since the last call."""
        if num_preemptions:
            self._preemptions.inc(num_preemptions)
        if prefix_queries:
            self._prefix_queries.inc(prefix_queries)
            self._prefix_hits.inc(prefix_hits)

    def on_load(self, num_running: int, num_waiting: int, kv_usage: float) -> None:
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        self._kv_usage.set(kv_usage)
