"""Values that the chart refuses, and how it takes those that are null."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, Object, RenderError, kinds, needs_helm, render

pytestmark = needs_helm

NODES: Object = {
    "model": {"source": "claim", "claim": "models"},
    "gpu": {"count": 8},
    "multiNode": {"enabled": True, "size": 2, "tensorParallelSize": 8, "pipelineParallelSize": 2},
}


def nodes_with(**values: Object) -> Object:
    return {**NODES, **{name: {**NODES.get(name, {}), **value} for name, value in values.items()}}


REFUSED: list[tuple[Object, str]] = [
    ({"wokers": 2}, "additional properties 'wokers' not allowed"),
    ({"config": {"engine": {"max_num_seq": 2}}}, "additional properties 'max_num_seq' not allowed"),
    ({"config": {"engine": {"max_num_seqs": 0}}}, "minimum"),
    ({"config": {"server": {"port": 80}}}, "additional properties 'port' not allowed"),
    ({"config": {"server": {"ssl_keyfile": "/key"}}}, "additional properties 'ssl_keyfile' not allowed"),
    ({"apiKeys": {"isFile": True}}, "name the Secret in apiKeys.existingSecret"),
    ({"tls": {"privateKeyKey": "tls.crt"}}, "certificate and key are two entries"),
    (
        {
            "tls": {"existingSecret": "cert"},
            "gateway": {"inferencePool": {"enabled": True, "endpointPicker": "picker"}},
        },
        "End TLS at the Gateway",
    ),
    ({"extraEnv": [{"name": "TOKENFLEET_DRAIN_TIMEOUT_S", "value": "1"}]}, "TOKENFLEET_DRAIN_TIMEOUT_S is the chart's"),
    ({"drain": {"terminationGracePeriodSeconds": 149}}, "streams would be cut"),
    ({"drain": {"preStopSeconds": 3}}, "new requests would meet a closed port"),
    ({"model": {"source": "claim"}}, "model.claim"),
    ({"model": {"source": "image"}}, "model.image"),
    ({"model": {"claim": "models"}}, "have no meaning"),
    ({"config": {"engine": {"device": "cuda"}}}, "gpu.count is 0"),
    ({"config": {"engine": {"device": "cpu"}}, "gpu": {"count": 1}}, "would be idle"),
    ({"gpu": {"count": 2}}, "gpu.count is 2, config.engine.engines 1"),
    ({"gpu": {"count": 4}, "config": {"engine": {"engines": 3}}}, "gpu.count is 4, config.engine.engines 3"),
    ({"config": {"engine": {"max_num_seqs": 65536}}}, "ring_bytes"),
    ({"resources": {"limits": {"memory": "512Mi"}}}, "before any weights"),
    ({"config": {"server": {"workers": 64}}}, "before any weights"),
    ({"config": {"engine": {"kv_cache_memory_bytes": 4294967296}}}, "before any weights"),
    ({"config": {"server": {"response_store_bytes": 3221225472}}}, "before any weights"),
    (
        {"resources": {"requests": {"memory": "1Gi"}, "limits": None}, "config": {"server": {"workers": 20}}},
        "requests.memory",
    ),
    ({"resources": {"limits": {"memory": "3GB"}}}, "pattern"),
    ({"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}, "tmp is the name of a volume of the chart's own"),
    ({"extraVolumes": [{"name": "empty"}]}, "minProperties"),
    ({"extraVolumeMounts": [{"name": "none", "mountPath": "/x"}]}, "there is no volume none"),
    ({"extraVolumeMounts": [{"name": "tmp", "mountPath": "/models/"}]}, "/models/ is a place of the chart's own"),
    ({"config": {"ops": {"otlp_traces_endpoint": "http://otel:4318/v1/traces"}}}, "no span would leave the pod"),
    ({"monitoring": {"runbookUrl": "https://wiki.example.com/"}}, "pattern"),
    ({"resources": {"limits": {"memory": "2.5Gi"}}}, r"resources.requests.memory 3Gi is more than"),
    ({"resources": {"limits": {"cpu": "1999m"}}}, r"resources.requests.cpu 2 is more than"),
    ({"fullnameOverride": "Foo_Bar"}, "pattern"),
    ({"nameOverride": "1st"}, "pattern"),
    ({"image": {"tag": "a b"}}, "pattern"),
    ({"podDisruptionBudget": {"maxUnavailable": "150%"}}, "maxUnavailable"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is the chart's own"),
    ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels: helm.sh/chart is the chart's own"),
    ({"commonLabels": {"team": "a"}, "podLabels": {"team": "b"}}, "team is among commonLabels already"),
    ({"commonLabels": {"team": "a b"}}, "pattern"),
    ({"podAnnotations": {"checksum/config": "x"}}, "checksum/config is the chart's own"),
    ({"probes": {"startup": {"budgetSeconds": 60}}}, "may still load"),
    ({"rollingUpdate": {"maxSurge": 0}}, "nothing could ever roll"),
    ({"autoscaling": {"minReplicas": 9}}, "exceeds maxReplicas"),
    ({"autoscaling": {"kind": "keda"}}, "kedaPrometheusAddress"),
    ({"autoscaling": {"kind": "hpa", "minReplicas": 0}}, "would never come back"),
    (
        {"autoscaling": {"kind": "keda", "minReplicas": 0, "kedaPrometheusAddress": "http://prometheus:9090"}},
        "would never come back",
    ),
    ({"cache": {"type": "claim"}}, "a second pod on another would hang"),
    ({"gateway": {"httpRoute": {"enabled": True}}}, "parentRefs"),
    (nodes_with(multiNode={"tensorParallelSize": 4}), "wants 8 GPUs, but 2 pods with gpu.count 8 have 16"),
    (nodes_with(multiNode={"size": 1}), "minimum"),
    (nodes_with(model={"source": "embedded", "claim": ""}), "the embedded model needs no second node"),
    (nodes_with(config={"engine": {"engine": "core"}}), "config.engine.engine is the chart's own"),
    (nodes_with(config={"engine": {"max_num_batched_tokens": 4096}}), "its flags are multiNode.extraArgs"),
    (nodes_with(config={"engine": {"disable_cascade_attn": True}}), "its flags are multiNode.extraArgs"),
    (nodes_with(config={"model": {"load_format": "dummy"}}), "its flags are multiNode.extraArgs"),
    (nodes_with(multiNode={"extraArgs": ["--seed=1"]}), "--seed=1 follows from multiNode or config"),
    (nodes_with(config={"engine": {"engines": 2}}), "take more replicas"),
    (nodes_with(multiNode={"extraArgs": ["--node-rank=1"]}), "--node-rank=1 follows from multiNode or config"),
    (nodes_with(multiNode={"sharedMemory": "64Gi"}), "leave room"),
    (
        nodes_with(multiNode={"resources": {"limits": {"cpu": "4"}}}),
        r"multiNode.resources.requests.cpu 8 is more than",
    ),
    ({"gateway": {"inferencePool": {"enabled": True}}}, "endpointPicker"),
]


@pytest.mark.parametrize("values, reason", REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_values_that_cannot_work_do_not_render(values: Object, reason: str) -> None:
    with pytest.raises(RenderError, match=reason):
        render(values)


VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
MAY_BE_MISSING = {"resources.requests", "resources.limits", "monitoring.dashboardLabels.grafana_dashboard"}
"""Beside lists and tables that are empty by default."""


def _nulls(table: Object, path: str = "") -> tuple[Object, Object, list[str]]:
    """Every value set to null: those that may be missing, those that may not, and the names of these."""
    may: Object = {}
    must: Object = {}
    names: list[str] = []
    for name, value in table.items():
        place = f"{path}.{name}".removeprefix(".")
        if value in (None, {}, []) or place.removeprefix("multiNode.") in MAY_BE_MISSING:
            may[name] = None
        elif isinstance(value, dict) and place != "config":
            may[name], must[name], inner = _nulls(value, place)
            names += inner
        else:
            must[name] = None
            names.append(name)
    return may, must, names


def test_a_null_renders_as_nothing_or_is_refused_by_the_schema() -> None:
    """Helm takes a null as "without the chart's default"."""
    may, must, names = _nulls(VALUES)
    tables = {name: None for name, value in VALUES.items() if isinstance(value, dict) and value}

    assert "Deployment" in kinds(render(may))
    with pytest.raises(RenderError) as leaves:
        render(must)
    with pytest.raises(RenderError) as whole:
        render(tables)
    assert len(names) >= 80
    assert [name for name in names if f"'{name}'" not in str(leaves.value)] == []
    assert [name for name in tables if f"'{name}'" not in str(whole.value)] == []
    assert "missing propert" in str(leaves.value) and "nil pointer" not in str(leaves.value) + str(whole.value)


SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text())
OPEN = {
    "global",  # a parent chart's
    "nodeAffinity", "podAffinity", "podAntiAffinity", "extraVolumes", "valueFrom",  # Kubernetes' own objects
    "clients", "monitoring", "egress",  # of a NetworkPolicy
}  # fmt: skip


def _open_objects(schema: Any, name: str = "") -> Iterator[str]:  # Any: JSON Schema
    """Names of the properties that are objects and take any key."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
            yield name
        for key, inner in schema.items():
            for key_below, below in inner.items() if key in ("properties", "$defs") else [(name, inner)]:
                yield from _open_objects(below, key_below)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _open_objects(inner, name)


def test_the_schema_is_closed_everywhere_but_for_kubernetes_own_objects() -> None:
    assert set(_open_objects(SCHEMA)) == OPEN
