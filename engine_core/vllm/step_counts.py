"""What vLLM's steps have counted, on its way to the metrics page.

Written a few steps at once, at the bridge's look: code that a step runs right after its wait is slow, for nothing of it is in
a cache, and nobody reads a page so often.
"""

from engine_core.metrics import EngineMetrics
from engine_core.vllm.wire import PrefixCacheStats, SchedulerStats
from ipc.fleet_page import Cell


class StepCounts:
    """Of one engine core."""

    def __init__(self, metrics: EngineMetrics, cell: Cell) -> None:
        self._metrics, self._cell = metrics, cell
        self.latest = SchedulerStats()
        """How vLLM's scheduler stood at its last step."""
        self._num_steps = 0
        self._steps: list[tuple[int, float]] = []  # tokens and seconds of each since the last look, like what follows
        self._num_preemptions = 0
        self._prefix, self._connector = PrefixCacheStats(), PrefixCacheStats()
        self._num_drafts = self._num_draft_tokens = 0  # since the beginning, these
        self._accepted_per_place: list[int] = []

    def add(self, stats: SchedulerStats | None, num_tokens: int, num_preemptions: int, duration_s: float) -> None:
        """One step: `num_tokens` that it computed, prompts included."""
        if num_tokens:
            self._steps.append((num_tokens, duration_s))
        self._num_preemptions += num_preemptions
        if stats is None:
            return
        self.latest = stats
        if stats.prefix_cache_stats is not None:
            _add(self._prefix, stats.prefix_cache_stats)
        if stats.connector_prefix_cache_stats is not None:
            _add(self._connector, stats.connector_prefix_cache_stats)
        drafts = stats.spec_decoding_stats
        if drafts is not None:
            self._num_drafts += drafts.num_drafts
            self._num_draft_tokens += drafts.num_draft_tokens
            missing = len(drafts.num_accepted_tokens_per_pos) - len(self._accepted_per_place)
            self._accepted_per_place += [0] * missing
            for place, accepted in enumerate(drafts.num_accepted_tokens_per_pos):
                self._accepted_per_place[place] += accepted

    def publish(self, *, has_work: bool, num_full_waits: int) -> None:
        metrics = self._metrics
        for num_tokens, duration_s in self._steps:
            metrics.on_step(num_tokens, duration_s)
        self._num_steps += len(self._steps)
        self._cell.steps = self._num_steps
        metrics.on_counts(self._num_preemptions, self._prefix.queries, self._prefix.hits)
        metrics.on_connector(self._connector.queries, self._connector.hits)
        if self._num_drafts:
            metrics.on_drafts(self._num_drafts, self._num_draft_tokens, self._accepted_per_place)
        self._steps, self._num_preemptions = [], 0
        self._prefix, self._connector = PrefixCacheStats(), PrefixCacheStats()
        if not has_work:
            self.latest = SchedulerStats()
        stats = self.latest
        metrics.on_load(
            stats.num_running_reqs,
            stats.num_waiting_reqs + stats.num_skipped_waiting_reqs,
            stats.kv_cache_usage,
            num_full_waits,
            num_deferred=stats.num_skipped_waiting_reqs,
        )


def _add(sums: PrefixCacheStats, stats: PrefixCacheStats) -> None:
    sums.queries += stats.queries
    sums.hits += stats.hits
