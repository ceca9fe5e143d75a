"""What vLLM 0.33.0 exports, we export: names, types, labels, buckets; what we have not is listed with the reason."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipc.exposition import Exposition
from loadtests.micro.scrape import Pages

LIST = tomllib.loads((Path(__file__).parent / "vllm_0_33_metrics.toml").read_text())
METRICS: dict[str, dict[str, Any]] = LIST["metrics"]  # Any: TOML


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    """What a fleet of two workers and two engines that guess tokens shows after its first requests, by name on the wire."""
    pages = Pages(num_workers=2, num_engines=2, max_model_len=4096, num_draft_places=3)
    pages.count()
    text = Exposition([segment.view for segment in pages.segments]).text().decode()
    found = text_string_to_metric_families(text)
    return {f"{family.name}_total" if family.type == "counter" else family.name: family for family in found}


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if "absent" not in entry])
def test_metric_is_vllms(families: dict[str, Metric], name: str) -> None:
    entry, family = METRICS[name], families[name]
    labels = frozenset(
        entry["own_labels"] if "own_labels" in entry else ["model_name", "engine", *entry.get("labels", [])]
    )

    assert family.type == entry["type"]
    assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {labels}
    if family.type == "histogram":
        assert set(_bounds(family)) == {*map(float, LIST["buckets"][entry["buckets"]]), float("inf")}


def test_what_is_listed_as_absent_is_absent_and_explained(families: dict[str, Metric]) -> None:
    absent = {name: entry["absent"] for name, entry in METRICS.items() if "absent" in entry}

    assert not absent.keys() & families.keys()
    assert all(len(reason.split()) > 2 for reason in absent.values())


def test_there_is_no_name_of_vllms_that_the_list_does_not_know(families: dict[str, Metric]) -> None:
    assert not {name for name in families if not name.startswith("tokenfleet:")} - METRICS.keys()


def _bounds(family: Metric) -> Iterator[float]:
    return (float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket"))
