"""Every way to render the chart, against the strict schemas of Kubernetes 1.30 to 1.37 and of the CRDs."""

import json
from typing import Any

import pytest

from charts.generate import stale_files
from tests.chart.rendering import (
    CHART,
    MONITORING_API,
    REPOSITORY,
    Object,
    RenderError,
    crd_faults,
    helm,
    kinds,
    needs_helm,
    render,
)

pytestmark = needs_helm

KUBERNETES = tuple(f"1.{minor}" for minor in range(30, 38))
PUBLISHED = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}  # in npm packages
CRDS = {*PUBLISHED, "InferencePool", "LeaderWorkerSet"}
EVERYTHING_ELSE: Object = {
    "commonLabels": {"team": "chat"},
    "podLabels": {"tier": "gold"},
    "podAnnotations": {"note": "1"},
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["registry"]},
    "cache": {"type": "claim", "accessMode": "ReadWriteMany", "storageClassName": "nfs", "size": "10Gi"},
    "service": {"type": "LoadBalancer", "annotations": {"lb": "internal"}, "sessionAffinity": "ClientIP"},
    "autoscaling": {"kind": "hpa"},
    "monitoring": {"podMonitor": False, "serviceMonitor": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "clients": [{"podSelector": {"matchLabels": {"app": "gateway"}}}],
        "egress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}],
    },
    "gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["chat.example.com"]}},
    "serviceAccount": {"annotations": {"iam": "role"}},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "nodeSelector": {"pool": "llm"},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "drain": {"terminationGracePeriodSeconds": 600},
    "apiKeys": {"existingSecret": "keys", "key": "keys.toml", "isFile": True},
    "tls": {"existingSecret": "certificate"},
}
EVERYTHING_OFF: Object = {
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
    "topologySpread": {"enabled": False},
    "monitoring": {"podMonitor": False, "prometheusRule": False, "dashboards": False},
    "resources": {"limits": None},
}
WAYS: dict[str, tuple[str | None, Object]] = {
    "defaults": (None, {}),
    "cpu": ("values-cpu.yaml", {}),
    "h100": ("values-h100.yaml", {}),
    "nodes": ("values-nodes.yaml", {"multiNode": {"exclusiveTopology": "rack"}}),
    "everything else": (None, EVERYTHING_ELSE),
    "everything off": (None, EVERYTHING_OFF),
}


def render_way(way: str, kubernetes: str = "1.35") -> list[Object]:
    file, values = WAYS[way]
    return render(values, "--api-versions", MONITORING_API, "--kube-version", kubernetes, file=file)


def pods_of_groups(objects: list[Object]) -> list[Object]:
    """Of every LeaderWorkerSet, as Kubernetes will see them."""
    templates = [item["spec"]["leaderWorkerTemplate"] for item in objects if item["kind"] == "LeaderWorkerSet"]
    return [
        {"apiVersion": "v1", "kind": "Pod", **template[f"{role}Template"]}
        for template in templates
        for role in ("leader", "worker")
    ]


def test_helm_lints_the_chart_strictly() -> None:
    for file in sorted(CHART.glob("values*.yaml")):
        assert "0 chart(s) failed" in helm("lint", str(CHART), "--strict", "--values", str(file))


@pytest.mark.parametrize("way", WAYS)
def test_objects_satisfy_the_strict_schemas_of_every_kubernetes(way: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="make chart-tools")
    for kubernetes in KUBERNETES:
        objects = render_way(way, kubernetes)

        for item in [*objects, *pods_of_groups(objects)]:
            if item["kind"] not in CRDS:
                validator.validate(item, kubernetes, strict=True)


def test_an_image_volume_satisfies_the_schemas_that_have_it() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="make chart-tools")
    values = {"model": {"source": "image", "image": "registry.example.com/models/qwen3-8b:1"}}
    for kubernetes in KUBERNETES[3:]:
        for item in render(values, "--kube-version", kubernetes):
            validator.validate(item, kubernetes, strict=True)
    with pytest.raises(RenderError, match=r"needs Kubernetes 1\.33"):
        render(values, "--kube-version", "1.32")


@pytest.mark.parametrize("way", WAYS)
def test_custom_resources_satisfy_their_published_schemas(way: str) -> None:
    published = [item for item in render_way(way) if item["kind"] in PUBLISHED]

    assert crd_faults(published) == ""


def test_a_wrong_custom_resource_is_refused() -> None:
    objects = render_way("h100")
    by_kind = {item["kind"]: item["spec"] for item in objects if item["kind"] in CRDS}
    del by_kind["ScaledObject"]["scaleTargetRef"]
    by_kind["PodMonitor"]["selector"] = "no object"
    by_kind["HTTPRoute"]["rules"][0]["backendRefs"][0]["port"] = "http"

    refused = crd_faults([item for item in objects if item["kind"] in ("ScaledObject", "PodMonitor", "HTTPRoute")])

    assert {line.split(" ")[0] for line in refused.splitlines()} == {"ScaledObject", "PodMonitor", "HTTPRoute"}


def test_the_inference_pool_satisfies_its_api() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="make chart-tools")
    schema = json.loads((REPOSITORY / "charts" / "inferencepool.schema.json").read_text())
    (pool,) = [item for item in render_way("h100") if item["kind"] == "InferencePool"]

    jsonschema.validate(pool, schema)


def test_the_leader_worker_set_satisfies_its_api() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema", reason="make chart-tools")
    schema = json.loads((REPOSITORY / "charts" / "leaderworkerset.schema.json").read_text())
    (group,) = [item for item in render_way("nodes") if item["kind"] == "LeaderWorkerSet"]

    jsonschema.validate(group, schema)
    group["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(group, schema)


def test_every_kind_of_custom_resource_is_among_the_ways() -> None:
    rendered = set().union(*(kinds(render_way(way)) for way in WAYS))
    has_alerts = any((CHART / "files" / "alerts").glob("*.yaml"))

    assert rendered >= CRDS - (set() if has_alerts else {"PrometheusRule"})


def test_generated_files_are_fresh() -> None:
    assert stale_files() == [], "python -m charts.generate"
