"""vllm_0_33_metrics.toml, and how a family of an exposition is compared with it."""

import tomllib
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_LIST = tomllib.loads((Path(__file__).parent / "vllm_0_33_metrics.toml").read_text())
METRICS: dict[str, dict[str, Any]] = _LIST["metrics"]  # Any: TOML
FAMILIES: dict[str, str] = _LIST["families"]
EXPORTED = [name for name, entry in METRICS.items() if "absent" not in entry]


def families_of(text: str) -> dict[str, Metric]:
    """By name on the wire. When a series began is none of its own."""
    found = {_name(family): family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in found.items() if not name.endswith("_created")}


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def reason_or_none(name: str) -> str | None:
    """Why a metric of vLLM's is not ours."""
    for beginning, reason in FAMILIES.items():
        if name.startswith(beginning):
            return reason
    entry = METRICS.get(name, {})
    return str(entry["absent"]) if "absent" in entry else None


def labels_of(family: Metric) -> set[frozenset[str]]:
    return {frozenset(sample.labels) - {"le"} for sample in family.samples}


def listed_labels(name: str) -> frozenset[str]:
    entry = METRICS[name]
    return frozenset(
        entry["own_labels"] if "own_labels" in entry else ["model_name", "engine", *entry.get("labels", [])]
    )


def bounds_of(family: Metric) -> set[float]:
    return {float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")}


def listed_bounds(name: str) -> set[float]:
    """Of a context of 4096 tokens. Empty for what is no histogram."""
    kind = METRICS[name].get("buckets")
    return set() if kind is None else {*map(float, _LIST["buckets"][kind]), float("inf")}
