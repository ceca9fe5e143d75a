"""What an engine counts: vLLM's names, labels and buckets where vLLM has the thing. Written by the step loop.

Queue, prefill and decode times of requests travel in their Finish and are counted by the worker, not here.
"""

from ipc.metrics_page import Instrument, MetricsWriter, Tally

_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)

INSTRUMENTS = (
    Instrument("gauge", "vllm:num_requests_running", "Requests in the running batch."),
    Instrument("gauge", "vllm:num_requests_waiting", "Requests waiting for a place in the batch."),
    Instrument("gauge", "vllm:num_requests_waiting_by_reason", "Waiting requests, by what they wait for."),
    Instrument("gauge", "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", combine="max"),
    Instrument("gauge", "vllm:engine_sleep_state", "1 for the state the engine is in.", combine="max"),
    Instrument("gauge", "vllm:cache_config_info", "Facts of the KV cache, as labels.", combine="max"),
    Instrument("counter", "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    Instrument("counter", "vllm:prefix_cache_hits", "Prompt tokens served by the prefix cache."),
    Instrument(
        "counter", "vllm:external_prefix_cache_queries", "Tokens asked of a KV connector, which engine vllm has."
    ),
    Instrument("counter", "vllm:external_prefix_cache_hits", "Tokens got from a KV connector, which engine vllm has."),
    Instrument("counter", "vllm:num_preemptions", "Times a running request gave its KV blocks back."),
    Instrument("counter", "vllm:spec_decode_num_drafts", "Passes of one sequence that had drafted tokens."),
    Instrument("counter", "vllm:spec_decode_num_draft_tokens", "Drafted tokens."),
    Instrument("counter", "vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were right."),
    Instrument("counter", "vllm:spec_decode_num_accepted_tokens_per_pos", "The same, by place in the draft."),
    Instrument("histogram", "vllm:iteration_tokens_total", "Tokens computed per step.", buckets=_ITERATION_BUCKETS),
    Instrument("histogram", "tokenfleet:engine_step_seconds", "Duration of a step.", buckets=_STEP_BUCKETS),
    Instrument("gauge", "tokenfleet:engine_requests_running", "Running batch of one engine."),
    Instrument("gauge", "tokenfleet:engine_requests_waiting", "Waiting requests of one engine."),
    Instrument("gauge", "tokenfleet:engine_kv_usage", "Share of one engine's KV blocks in use.", combine="max"),
    Instrument("counter", "tokenfleet:engine_tokens", "Tokens one engine has computed, prompts included."),
    Instrument("counter", "tokenfleet:ring_full_waits", "Records that found their worker's ring full and waited."),
)


class EngineMetrics:
    """Handles into one engine's metrics page, looked up once.

    What vLLM has stands under engine="0" whatever the engine, so that it becomes one series of the fleet: endpoint pickers
    read the first series of a gauge only. What is an engine's own is under `tokenfleet:`.
    """

    def __init__(
        self,
        view: memoryview,
        *,
        model_name: str,
        engine: int,
        block_size: int,
        num_blocks: int,
        num_draft_places: int = 0,
    ) -> None:
        writer = MetricsWriter(view, INSTRUMENTS)
        fleet = {"model_name": model_name, "engine": "0"}
        own = {"model_name": model_name, "engine": str(engine)}
        self._running = writer.gauge("vllm:num_requests_running", **fleet)
        self._waiting = writer.gauge("vllm:num_requests_waiting", **fleet)
        self._waiting_for_capacity = writer.gauge("vllm:num_requests_waiting_by_reason", **fleet, reason="capacity")
        self._waiting_deferred = writer.gauge("vllm:num_requests_waiting_by_reason", **fleet, reason="deferred")
        self._kv_usage = writer.gauge("vllm:kv_cache_usage_perc", **fleet)
        self._prefix_queries = writer.counter("vllm:prefix_cache_queries", **fleet)
        self._prefix_hits = writer.counter("vllm:prefix_cache_hits", **fleet)
        self._connector_queries = writer.counter("vllm:external_prefix_cache_queries", **fleet)
        self._connector_hits = writer.counter("vllm:external_prefix_cache_hits", **fleet)
        self._preemptions = writer.counter("vllm:num_preemptions", **fleet)
        self._iteration_tokens = writer.histogram("vllm:iteration_tokens_total", **fleet)
        self._step_seconds = writer.histogram("tokenfleet:engine_step_seconds", **own)
        self._own_running = writer.gauge("tokenfleet:engine_requests_running", **own)
        self._own_waiting = writer.gauge("tokenfleet:engine_requests_waiting", **own)
        self._own_kv_usage = writer.gauge("tokenfleet:engine_kv_usage", **own)
        self._tokens = writer.counter("tokenfleet:engine_tokens", **own)
        self._ring_full_waits = Tally(writer.counter("tokenfleet:ring_full_waits", **own))
        self._sleep_states = {
            level: writer.gauge("vllm:engine_sleep_state", **fleet, sleep_state=state)
            for level, state in ((None, "awake"), (1, "weights_offloaded"), (2, "discard_all"))
        }
        self.on_sleep(None)
        self._writer, self._fleet = writer, fleet
        self._drafts: Tally | None = None
        if num_draft_places:
            self.on_drafts(0, 0, [0] * num_draft_places)
        if engine == 0:  # one series of it, too: engines of a fleet are alike
            facts = {"block_size": str(block_size), "num_gpu_blocks": str(num_blocks)}
            writer.gauge("vllm:cache_config_info", engine="0", **facts).set(1.0)  # of no model, as vLLM's

    def on_step(self, num_tokens: int, duration_s: float) -> None:
        """One forward pass and what it took with everything around it."""
        self._iteration_tokens.observe(num_tokens)
        self._step_seconds.observe(duration_s)
        self._tokens.inc(num_tokens)

    def on_counts(self, num_preemptions: int, prefix_queries: int, prefix_hits: int) -> None:
        """What was added since the last call."""
        if num_preemptions:
            self._preemptions.inc(num_preemptions)
        if prefix_queries:
            self._prefix_queries.inc(prefix_queries)
            self._prefix_hits.inc(prefix_hits)

    def on_connector(self, queries: int, hits: int) -> None:
        """Tokens that a KV connector was asked for and had, since the last call."""
        if queries:
            self._connector_queries.inc(queries)
            self._connector_hits.inc(hits)

    def on_drafts(self, num_drafts: int, num_draft_tokens: int, accepted_per_place: list[int]) -> None:
        """Since the process began; the first call says how long the longest draft is."""
        if self._drafts is None:
            counter, fleet = self._writer.counter, self._fleet
            self._drafts = Tally(counter("vllm:spec_decode_num_drafts", **fleet))
            self._draft_tokens = Tally(counter("vllm:spec_decode_num_draft_tokens", **fleet))
            self._accepted_tokens = Tally(counter("vllm:spec_decode_num_accepted_tokens", **fleet))
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            self._accepted_per_place = [
                Tally(counter(name, **fleet, position=str(place))) for place in range(len(accepted_per_place))
            ]
        self._drafts.grow_to(num_drafts)
        self._draft_tokens.grow_to(num_draft_tokens)
        self._accepted_tokens.grow_to(sum(accepted_per_place))
        for tally, accepted in zip(self._accepted_per_place, accepted_per_place, strict=True):
            tally.grow_to(accepted)

    def on_sleep(self, level: int | None) -> None:
        """None: it is awake. At level 0 it only rests, and is in no state that has a name."""
        for other, gauge in self._sleep_states.items():
            gauge.set(other == level)

    def on_load(
        self, num_running: int, num_waiting: int, kv_usage: float, num_full_waits: int = 0, *, num_deferred: int = 0
    ) -> None:
        """How it stands now. `num_deferred` of those that wait do so for something else than a place, a K/V transfer say;
        `num_full_waits` counts since the process began."""
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        self._waiting_for_capacity.set(num_waiting - num_deferred)
        self._waiting_deferred.set(num_deferred)
        self._kv_usage.set(kv_usage)
        self._own_running.set(num_running)
        self._own_waiting.set(num_waiting)
        self._own_kv_usage.set(kv_usage)
        self._ring_full_waits.grow_to(num_full_waits)
