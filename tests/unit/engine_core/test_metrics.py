"""The engine's metrics, as a scrape shows them."""

from engine_core.metrics import EngineMetrics
from ipc.exposition import Exposition
from ipc.metrics_page import create_metrics_segment


def test_a_scrape_shows_vllm_names_with_model_and_engine() -> None:
    segment = create_metrics_segment("engine")
    metrics = EngineMetrics(segment.view, model_name="m", engine=0, block_size=16, num_blocks=40)

    metrics.on_step(num_tokens=12, duration_s=0.004)
    metrics.on_counts(num_preemptions=2, prefix_queries=100, prefix_hits=64)
    metrics.on_load(num_running=5, num_waiting=6, kv_usage=0.25, num_full_waits=3)
    lines = set(Exposition([segment.view]).text().decode().splitlines())

    labels = 'engine="0",model_name="m"'
    assert {
        f"vllm:num_requests_running{{{labels}}} 5.0",
        f"vllm:num_requests_waiting{{{labels}}} 6.0",
        f"vllm:kv_cache_usage_perc{{{labels}}} 0.25",
        f"vllm:num_preemptions_total{{{labels}}} 2.0",
        f"vllm:prefix_cache_queries_total{{{labels}}} 100.0",
        f"vllm:prefix_cache_hits_total{{{labels}}} 64.0",
        f"vllm:iteration_tokens_total_sum{{{labels}}} 12.0",
        f"tokenfleet:engine_step_seconds_count{{{labels}}} 1.0",
        f"tokenfleet:ring_full_waits_total{{{labels}}} 3.0",
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="40"} 1.0',
    } <= lines, "\n".join(sorted(lines))


def test_engines_are_one_series_under_vllms_names_and_apart_under_ours() -> None:
    """Endpoint pickers read the first series of a gauge only."""
    segments = [create_metrics_segment(f"engine-{n}") for n in range(2)]
    for number, segment in enumerate(segments):
        metrics = EngineMetrics(segment.view, model_name="m", engine=number, block_size=16, num_blocks=40)
        metrics.on_load(num_running=5 + number, num_waiting=number, kv_usage=0.25 * number)

    lines = Exposition([segment.view for segment in segments]).text().decode().splitlines()

    def samples(name: str) -> list[str]:
        return [line for line in lines if line.startswith(name + "{")]

    labels = 'engine="0",model_name="m"'
    assert samples("vllm:num_requests_running") == [f"vllm:num_requests_running{{{labels}}} 11.0"]
    assert samples("vllm:num_requests_waiting") == [f"vllm:num_requests_waiting{{{labels}}} 1.0"]
    assert samples("vllm:kv_cache_usage_perc") == [f"vllm:kv_cache_usage_perc{{{labels}}} 0.25"]
    assert len(samples("vllm:cache_config_info")) == 1
    assert [line.rpartition(" ")[2] for line in samples("tokenfleet:engine_requests_running")] == ["5.0", "6.0"]


def test_drafts_are_counted_under_vllms_names_by_place() -> None:
    segment = create_metrics_segment("engine")
    metrics = EngineMetrics(segment.view, model_name="m", engine=0, block_size=16, num_blocks=40, num_draft_places=3)

    metrics.on_drafts(num_drafts=4, num_draft_tokens=11, accepted_per_place=[3, 1, 0])
    metrics.on_drafts(num_drafts=6, num_draft_tokens=17, accepted_per_place=[5, 2, 0])
    lines = set(Exposition([segment.view]).text().decode().splitlines())

    labels = 'engine="0",model_name="m"'
    assert {
        f"vllm:spec_decode_num_drafts_total{{{labels}}} 6.0",
        f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} 17.0",
        f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} 7.0",
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="0"}} 5.0',
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="1"}} 2.0',
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="2"}} 0.0',
    } <= lines, "\n".join(sorted(lines))


def test_an_engine_that_guesses_nothing_shows_no_series_of_it() -> None:
    segment = create_metrics_segment("engine")
    EngineMetrics(segment.view, model_name="m", engine=0, block_size=16, num_blocks=40)

    assert "spec_decode" not in Exposition([segment.view]).text().decode()
