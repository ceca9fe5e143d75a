"""Every query of every dashboard returns data from a real Prometheus that scrapes a real fleet under load."""

import json
import math
import time
from collections.abc import Iterator

import pytest

from loadtests.background_load import BackgroundLoad
from loadtests.prometheus import Prometheus
from ops.monitoring.__main__ import OPS
from tests.integration.fleet import Fleet

pytestmark = pytest.mark.ops

FLAGS = ("--engine", "sim", "--engines", "2", "--workers", "2", "--sim-step-ms", "5", "--max-num-seqs", "8")
LOADED_S = 15.0
DEADLINE_S = 60.0


def panel_queries() -> Iterator[tuple[str, str]]:
    for path in sorted((OPS / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}: {target['refId']}", target["expr"]


VLLM_HISTOGRAMS = (
    "e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds",
    "request_time_per_output_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
    "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    "request_max_num_generation_tokens",
)  # fmt: skip


def vllm_queries() -> Iterator[tuple[str, str]]:
    """What vLLM's own dashboards ask for (examples/observability of vllm-project/vllm: prometheus_grafana/grafana.json and
    dashboards/grafana), in each of their forms: quantiles, means, heat maps, rates, increases, gauges by model."""
    model = 'model_name="$model_name"'
    for name in VLLM_HISTOGRAMS:
        rate = f"sum by(le) (rate(vllm:{name}_bucket{{{model}}}[$__rate_interval]))"
        for quantile in (0.5, 0.9, 0.95, 0.99):
            yield f"{name} p{quantile}", f"histogram_quantile({quantile}, {rate})"
        parts = [f"rate(vllm:{name}_{part}{{{model}}}[$__rate_interval])" for part in ("sum", "count")]
        yield f"{name} mean", " / ".join(parts)
        yield f"{name} heat map", f"sum by(le) (increase(vllm:{name}_bucket{{{model}}}[$__rate_interval]))"
    for name in ("prompt_tokens_total", "generation_tokens_total"):
        yield name, f"rate(vllm:{name}{{{model}}}[$__rate_interval])"
    reasons = f"increase(vllm:request_success_total{{{model}}}[$__rate_interval])"
    yield "request_success_total", f"sum by(finished_reason) ({reasons})"
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        yield name, f"vllm:{name}{{{model}}}"
    hits, queries = (f"sum(rate(vllm:prefix_cache_{part}_total[$__rate_interval]))" for part in ("hits", "queries"))
    yield "prefix cache hit rate", f"{hits} / {queries}"
    yield "cache_config_info", 'vllm:cache_config_info{block_size!="",num_gpu_blocks!=""}'


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has watched a fleet serve for LOADED_S, and goes on watching."""
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        Fleet(folder / "fleet.log", *FLAGS) as fleet,
        Prometheus(folder / "data", [fleet.ops_port]) as prometheus,
        BackgroundLoad(fleet.port),
    ):
        time.sleep(LOADED_S)  # rates need samples over time: there is no condition to wait for
        yield prometheus


def has_data(prometheus: Prometheus, expr: str) -> bool:
    """Numbers, not NaN, which a quotient of nothing is."""
    model = prometheus.query("vllm:num_requests_running")[0]["metric"]["model_name"]
    filled = expr.replace("$__rate_interval", "10s").replace("$instance", ".*").replace("$model_name", model)
    series = prometheus.query(filled)
    return bool(series) and any(math.isfinite(float(one["value"][1])) for one in series)


@pytest.mark.parametrize(("name", "expr"), [*panel_queries(), *vllm_queries()])
def test_query_has_data(prometheus: Prometheus, name: str, expr: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S

    while not has_data(prometheus, expr):
        assert time.monotonic() < deadline_s, f"no data: {expr}"
        time.sleep(1)


def test_a_scraper_that_prefers_openmetrics_gets_names_with_their_colon(prometheus: Prometheus) -> None:
    """Prometheus asks for OpenMetrics first; exporters that comply make `vllm_` of `vllm:`."""
    names = {one["metric"]["__name__"] for one in prometheus.query('{__name__=~"vllm.*|tokenfleet.*"}')}

    assert len(names) > 60
    assert all(name.startswith(("vllm:", "tokenfleet:")) for name in names)


def test_endpoint_pickers_find_one_series_per_gauge_for_two_engines(prometheus: Prometheus) -> None:
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert len(prometheus.query(name)) == 1
