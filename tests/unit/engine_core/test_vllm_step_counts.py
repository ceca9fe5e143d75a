"""What vLLM's steps count, as a scrape shows it."""

from engine_core.metrics import EngineMetrics
from engine_core.vllm.step_counts import StepCounts
from engine_core.vllm.wire import DraftStats, PrefixCacheStats, SchedulerStats
from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage
from ipc.metrics_page import create_metrics_segment

LABELS = 'engine="0",model_name="m"'


class Scraped:
    def __init__(self) -> None:
        self._segment, self._fleet = create_metrics_segment("engine"), FleetPage.create_segment(1, 1)
        metrics = EngineMetrics(self._segment.view, model_name="m", engine=0, block_size=16, num_blocks=40)
        self.cell = FleetPage(self._fleet.view).engines[0]
        self.counts = StepCounts(metrics, self.cell)

    def lines(self, *, has_work: bool = True) -> set[str]:
        self.counts.publish(has_work=has_work, num_full_waits=0)
        return set(Exposition([self._segment.view]).text().decode().splitlines())


def test_steps_between_two_looks_are_added_up() -> None:
    scraped = Scraped()
    for queries in (10, 20):
        cache = PrefixCacheStats(queries=queries, hits=5)
        stats = SchedulerStats(
            num_running_reqs=3,
            num_waiting_reqs=4,
            num_skipped_waiting_reqs=2,
            kv_cache_usage=0.5,
            prefix_cache_stats=cache,
            connector_prefix_cache_stats=PrefixCacheStats(queries=7, hits=6),
            spec_decoding_stats=DraftStats(num_drafts=2, num_draft_tokens=6, num_accepted_tokens_per_pos=[2, 1]),
        )
        scraped.counts.add(stats, 12, 1, 0.004)
    scraped.counts.add(None, 0, 0, 0.004)

    lines = scraped.lines()

    assert {
        f"vllm:iteration_tokens_total_sum{{{LABELS}}} 24.0",
        f"vllm:iteration_tokens_total_count{{{LABELS}}} 2.0",
        f"vllm:num_preemptions_total{{{LABELS}}} 2.0",
        f"vllm:prefix_cache_queries_total{{{LABELS}}} 30.0",
        f"vllm:prefix_cache_hits_total{{{LABELS}}} 10.0",
        f"vllm:external_prefix_cache_queries_total{{{LABELS}}} 14.0",
        f"vllm:external_prefix_cache_hits_total{{{LABELS}}} 12.0",
        f"vllm:spec_decode_num_drafts_total{{{LABELS}}} 4.0",
        f"vllm:spec_decode_num_draft_tokens_total{{{LABELS}}} 12.0",
        f"vllm:spec_decode_num_accepted_tokens_total{{{LABELS}}} 6.0",
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{LABELS},position="1"}} 2.0',
        f"vllm:num_requests_running{{{LABELS}}} 3.0",
        f"vllm:num_requests_waiting{{{LABELS}}} 6.0",
        f'vllm:num_requests_waiting_by_reason{{{LABELS},reason="capacity"}} 4.0',
        f'vllm:num_requests_waiting_by_reason{{{LABELS},reason="deferred"}} 2.0',
    } <= lines, "\n".join(sorted(lines))
    assert scraped.cell.steps == 2
    assert scraped.lines() == lines, "nothing is counted twice"


def test_an_engine_core_without_requests_has_none_running_whatever_it_said_last() -> None:
    scraped = Scraped()
    scraped.counts.add(SchedulerStats(num_running_reqs=3, kv_cache_usage=0.5), 3, 0, 0.004)

    lines = scraped.lines(has_work=False)

    assert f"vllm:num_requests_running{{{LABELS}}} 0.0" in lines and scraped.counts.latest.num_running_reqs == 0


def test_no_drafts_no_series_of_them() -> None:
    scraped = Scraped()
    scraped.counts.add(SchedulerStats(), 3, 0, 0.004)

    assert not [line for line in scraped.lines() if line.startswith("vllm:spec_decode")]
