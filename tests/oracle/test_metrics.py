"""The page of a running vLLM against the list of its metrics, and against ours."""

import httpx
import pytest
from prometheus_client import Metric

from loadtests.peers.server import MODEL_NAME
from tests.integration.fleet import post_json
from tests.unit.ops.vllm_metric_list import METRICS, bounds_of, families_of, labels_of, reason_or_none

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(3600)]

CHAT = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
}
SETTINGS_AS_LABELS = (
    "vllm:cache_config_info"  # vLLM's has every setting of the cache; pickers want the two that ours has
)


@pytest.fixture(scope="module")
def pages(our_url: str, vllm_url: str) -> tuple[dict[str, Metric], dict[str, Metric]]:
    """Ours and vLLM's after a chat."""
    for url in (our_url, vllm_url):
        post_json(f"{url}/v1/chat/completions", CHAT)
    ours, theirs = (families_of(httpx.get(f"{url}/metrics", timeout=30).text) for url in (our_url, vllm_url))
    return ours, theirs


def test_every_metric_of_vllms_is_ours_or_has_its_reason(pages: tuple[dict[str, Metric], dict[str, Metric]]) -> None:
    ours, theirs = pages

    assert len([name for name in theirs if name.startswith("vllm:")]) > 35
    assert [name for name in theirs if name not in METRICS and reason_or_none(name) is None] == []
    assert [name for name in theirs if name not in ours and reason_or_none(name) is None] == []


def test_types_labels_and_buckets_are_vllms(pages: tuple[dict[str, Metric], dict[str, Metric]]) -> None:
    ours, theirs = pages

    for name in theirs.keys() & ours.keys():
        assert ours[name].type == theirs[name].type, name
        assert bounds_of(ours[name]) == bounds_of(theirs[name]), name
        if name == SETTINGS_AS_LABELS:
            assert max(labels_of(ours[name])) < max(labels_of(theirs[name]))
        else:
            assert labels_of(ours[name]) == labels_of(theirs[name]), name
