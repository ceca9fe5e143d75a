"""Every query of every dashboard returns data from a real Prometheus that scrapes a real fleet under load."""

import json
import math
import re
import time
from collections.abc import Iterator

import pytest

from loadtests.background_load import BackgroundLoad
from loadtests.prometheus import Prometheus
from ops.monitoring.__main__ import OPS
from tests.chart.rendering import of_kind, render
from tests.integration.fleet import Fleet
from tests.ops import vllm_dashboards

pytestmark = pytest.mark.ops

FLAGS = ("--engine", "sim", "--engines", "2", "--workers", "2", "--sim-step-ms", "5", "--max-num-seqs", "8")
OF_POD = {"namespace": "ns", "pod": "chat-tokenfleet-6d4cf56db6-x7k2p"}  # what a PodMonitor adds
DEADLINE_S = 60.0


def panel_queries() -> Iterator[tuple[str, str]]:
    for path in sorted((OPS / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}: {target['refId']}", target["expr"]


def vllm_queries() -> Iterator[tuple[str, str]]:
    for file, queries in vllm_dashboards.queries().items():
        for expr in sorted(queries):
            yield f"vLLM's {file}: {expr}", expr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Watches a fleet serve. A rate needs two samples: the first query waits for them."""
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        Fleet(folder / "fleet.log", *FLAGS) as fleet,
        Prometheus(folder / "data", [fleet.ops_port], labels=OF_POD) as prometheus,
        BackgroundLoad(fleet.port),
    ):
        fleet.wait_until(lambda: bool(prometheus.query("vllm:num_requests_running")), 20)
        yield prometheus


def has_data(prometheus: Prometheus, expr: str) -> bool:
    """Numbers, not NaN, which a quotient of nothing is."""
    model = prometheus.query("vllm:num_requests_running")[0]["metric"]["model_name"]
    values = {"instance": ".*", "model_name": model, "Deployment_id": model, "__range": "30s"}
    values |= {"__rate_interval": "10s", "__interval": "10s"}
    filled = re.sub(r"\$(\w+)", lambda name: values[name[1]], expr)
    series = prometheus.query(filled)
    return bool(series) and any(math.isfinite(float(one["value"][1])) for one in series)


@pytest.mark.parametrize(("name", "expr"), [*panel_queries(), *vllm_queries()])
def test_query_has_data(prometheus: Prometheus, name: str, expr: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S

    while not has_data(prometheus, expr):
        assert time.monotonic() < deadline_s, f"no data: {expr}"
        time.sleep(0.2)


@pytest.mark.parametrize("metric", ["vllm:request_success_total", "vllm:generation_tokens_total"])
def test_vllms_dashboards_offer_the_model(prometheus: Prometheus, metric: str) -> None:
    """Their variables are `label_values(METRIC, model_name)`."""
    assert {one["metric"]["model_name"] for one in prometheus.query(metric)} == {"SmolLM2-135M-Instruct"}


def test_a_scraper_that_prefers_openmetrics_gets_names_with_their_colon(prometheus: Prometheus) -> None:
    """Prometheus asks for OpenMetrics first; exporters that comply make `vllm_` of `vllm:`."""
    names = {one["metric"]["__name__"] for one in prometheus.query('{__name__=~"vllm.*|tokenfleet.*"}')}

    assert len(names) > 60
    assert all(name.startswith(("vllm:", "tokenfleet:")) for name in names)


def test_endpoint_pickers_find_one_series_per_gauge_for_two_engines(prometheus: Prometheus) -> None:
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert len(prometheus.query(name)) == 1


def test_the_charts_scaler_asks_for_the_requests_in_flight(prometheus: Prometheus) -> None:
    """KEDA's query, as helm renders it for release `chat` in namespace `ns`."""
    values = {"autoscaling": {"kind": "keda", "kedaPrometheusAddress": prometheus.url}}
    query = of_kind(render(values), "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]

    deadline_s = time.monotonic() + DEADLINE_S
    while not any(float(one["value"][1]) > 0 for one in prometheus.query(query)):
        assert time.monotonic() < deadline_s, "nothing is in flight"
        time.sleep(0.2)
    assert prometheus.query(query.replace("chat-tokenfleet", "other")) == []
