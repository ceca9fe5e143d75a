"""What vLLM 0.33.0 exports, we export: names, types, labels, buckets; what we have not is listed with the reason."""

import pytest
from prometheus_client import Metric

from ipc.exposition import Exposition
from loadtests.micro.scrape import Pages
from tests.unit.ops.vllm_metric_list import (
    EXPORTED,
    FAMILIES,
    METRICS,
    bounds_of,
    families_of,
    labels_of,
    listed_bounds,
    listed_labels,
    reason_or_none,
)


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    """What a fleet of two workers and two engines that guess tokens shows after its first requests, by name on the wire."""
    pages = Pages(num_workers=2, num_engines=2, max_model_len=4096, num_draft_places=3)
    pages.count()
    return families_of(Exposition([segment.view for segment in pages.segments]).text().decode())


@pytest.mark.parametrize("name", EXPORTED)
def test_metric_is_vllms(families: dict[str, Metric], name: str) -> None:
    family = families[name]

    assert family.type == METRICS[name]["type"]
    assert labels_of(family) == {listed_labels(name)}
    assert bounds_of(family) == listed_bounds(name)


def test_what_is_listed_as_absent_is_absent_and_explained(families: dict[str, Metric]) -> None:
    reasons = [*FAMILIES.values(), *(entry["absent"] for entry in METRICS.values() if "absent" in entry)]

    assert [name for name in families if reason_or_none(name) is not None] == []
    assert all(len(reason.split()) > 2 for reason in reasons)


def test_there_is_no_name_of_vllms_that_the_list_does_not_know(families: dict[str, Metric]) -> None:
    assert not {name for name in families if not name.startswith("tokenfleet:")} - METRICS.keys()
