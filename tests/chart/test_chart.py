"""What the chart's objects say, rendered by the real helm."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.checks import faults_of
from config.load import load
from ops.monitoring.alerts import ALERTS
from tests.chart.rendering import (
    CHART,
    MONITORING_API,
    REPOSITORY,
    Object,
    RenderError,
    container,
    environment,
    kinds,
    needs_helm,
    of_kind,
    pod_spec,
    render,
)
from tests.integration.fleet import Fleet
from tests.integration.test_tls import make_certificate

pytestmark = needs_helm

CHART_LABEL = "helm.sh/chart"
STOP_S = 11  # what the supervisor takes at most after the drain: ops.supervisor.STOP_GRACE_S twice, and one second


@pytest.mark.parametrize("file", [None, "values-cpu.yaml", "values-h100.yaml"])
def test_the_server_accepts_the_configuration_of_the_pod(file: str | None, tmp_path: Path) -> None:
    objects = render(file=file)
    path = tmp_path / "fleet.toml"
    path.write_text(_config_map(objects)["data"]["fleet.toml"])
    environ = {name: text for name, text in environment(objects).items() if name != "TOKENFLEET_CONFIG"}

    configuration = load({}, environ, path)

    assert faults_of(configuration) == []
    assert configuration.settings.ops.pre_stop_s == 15
    assert (configuration.settings.server.port, configuration.settings.ops.ops_port) == (8000, 8001)


def _config_map(objects: list[Object]) -> Object:
    return next(item for item in objects if item["kind"] == "ConfigMap" and "fleet.toml" in item["data"])


def test_numbers_keep_their_kind_on_the_way_into_toml() -> None:
    config = {
        "broker": {"max_num_queued_tokens": 4194304},
        "engine": {"gpu_memory_utilization": 0.92, "enable_prefix_caching": False},
        "model": {"served_model_name": ['a "quoted" name', "b"]},
    }

    rendered = tomllib.loads(_config_map(render({"config": config}))["data"]["fleet.toml"])

    assert {group: rendered[group] for group in config} == config


def test_three_probes_ask_three_questions_on_the_ops_port() -> None:
    server = container(render())

    probes = {name: server[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startup": "/startupz", "readiness": "/readyz", "liveness": "/livez",
    }  # fmt: skip
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"ops"}
    assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] == 900
    assert all("initialDelaySeconds" not in probe for probe in probes.values())
    waits = [(p["periodSeconds"], p["failureThreshold"], p["timeoutSeconds"]) for p in probes.values()]
    assert waits == [(5, 180, 2), (2, 2, 2), (10, 6, 5)]


def test_grace_covers_pre_stop_drain_and_the_end() -> None:
    objects = render({"drain": {"preStopSeconds": 20, "timeoutSeconds": 300, "marginSeconds": 12}})

    assert pod_spec(objects)["terminationGracePeriodSeconds"] == 332
    assert environment(objects)["TOKENFLEET_PRE_STOP_S"] == "20"
    assert environment(objects)["TOKENFLEET_DRAIN_TIMEOUT_S"] == "300"
    with pytest.raises(RenderError, match="minimum"):
        render({"drain": {"marginSeconds": STOP_S}})


def test_by_default_a_pod_looks_away_for_15_s_drains_for_120_s_and_has_15_s_to_end() -> None:
    objects = render()

    given = environment(objects)
    assert (given["TOKENFLEET_PRE_STOP_S"], given["TOKENFLEET_DRAIN_TIMEOUT_S"]) == ("15", "120")
    assert pod_spec(objects)["terminationGracePeriodSeconds"] == 150


def test_compiled_kernels_lie_in_the_cache() -> None:
    given = environment(render())

    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"):
        assert given[name].startswith("/cache/")


def test_a_rollout_waits_as_long_as_a_model_may_load() -> None:
    slow = render({"probes": {"startup": {"budgetSeconds": 3600}}})

    assert of_kind(render(), "Deployment")["spec"]["progressDeadlineSeconds"] == 1200
    assert of_kind(slow, "Deployment")["spec"]["progressDeadlineSeconds"] == 3900


def test_pods_are_hardened() -> None:
    for spec in (pod_spec(render()), of_kind(render(), "Pod")["spec"]):
        (found,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert found["securityContext"]["readOnlyRootFilesystem"] is True
        assert found["securityContext"]["allowPrivilegeEscalation"] is False
        assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert found["resources"]["limits"]


def test_keys_come_from_a_secret_and_stand_in_no_object() -> None:
    objects = render({"apiKeys": {"existingSecret": "keys", "key": "list"}})

    assert environment(objects)["TOKENFLEET_API_KEY"] == "secret:keys/list"
    assert not any(item["kind"] == "Secret" for item in objects)
    with pytest.raises(RenderError, match="api_key"):
        render({"config": {"server": {"api_key": ["secret"]}}})


def test_a_file_of_keys_is_mounted_whole_so_that_it_follows_the_secret() -> None:
    objects = render({"apiKeys": {"existingSecret": "keys", "key": "list", "isFile": True}})

    assert environment(objects)["TOKENFLEET_API_KEY_FILE"] == "/etc/tokenfleet-keys/list"
    assert "TOKENFLEET_API_KEY" not in environment(objects)
    (mount,) = (m for m in pod_spec(objects)["containers"][0]["volumeMounts"] if m["name"] == "keys")
    assert "subPath" not in mount and mount["mountPath"] == "/etc/tokenfleet-keys"
    assert {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o440}} in pod_spec(objects)["volumes"]


def test_a_certificate_comes_from_a_secret_and_the_ops_port_stays_plain() -> None:
    objects = render({"tls": {"existingSecret": "cert"}, "service": {"port": 443}})

    assert environment(objects)["TOKENFLEET_SSL_CERTFILE"] == "/etc/tokenfleet-tls/tls.crt"
    assert environment(objects)["TOKENFLEET_SSL_KEYFILE"] == "/etc/tokenfleet-tls/tls.key"
    (mount,) = (m for m in container(objects)["volumeMounts"] if m["name"] == "tls")
    assert mount == {"name": "tls", "mountPath": "/etc/tokenfleet-tls", "readOnly": True}
    assert {"name": "tls", "secret": {"secretName": "cert", "defaultMode": 0o440}} in pod_spec(objects)["volumes"]
    assert of_kind(objects, "Service")["spec"]["ports"][0]["appProtocol"] == "https"
    assert of_kind(objects, "Pod")["spec"]["containers"][0]["args"][1] == "https://chat-tokenfleet:443"
    probes = [container(objects)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert all(probe["port"] == "ops" and "scheme" not in probe for probe in probes)


def test_a_change_of_configuration_rolls_the_pods() -> None:
    def checksum(values: Object) -> str:
        template = of_kind(render(values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"config": {"engine": {"seed": 1}}})


def test_a_new_version_of_the_chart_alone_rolls_no_pod() -> None:
    template = of_kind(render(), "Deployment")["spec"]["template"]

    assert CHART_LABEL in of_kind(render(), "Deployment")["metadata"]["labels"]
    assert CHART_LABEL not in template["metadata"]["labels"]
    assert all(CHART_LABEL not in labels for labels in _labels_of_groups(render(file="values-nodes.yaml")))


def _labels_of_groups(objects: list[Object]) -> list[Object]:
    template = of_kind(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return [template[f"{role}Template"]["metadata"]["labels"] for role in ("leader", "worker")]


def test_more_volumes_are_the_servers_too() -> None:
    volume, mount = {"name": "templates", "configMap": {"name": "templates"}}, {"name": "templates", "mountPath": "/t"}
    objects = render({"extraVolumes": [volume], "extraVolumeMounts": [mount]})

    assert volume in pod_spec(objects)["volumes"]
    assert mount in container(objects)["volumeMounts"]


@pytest.mark.parametrize("setting, has_api, is_there", [
    ("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_monitors_follow_the_setting_or_the_cluster(setting: Any, has_api: bool, is_there: bool) -> None:
    flags = ["--api-versions", MONITORING_API] if has_api else []

    objects = render({"monitoring": {"podMonitor": setting}}, *flags)

    assert ("PodMonitor" in kinds(objects)) == is_there


def test_pods_are_scraped_once() -> None:
    flags = ("--api-versions", MONITORING_API)

    objects = render({"monitoring": {"serviceMonitor": True}}, *flags)

    assert "ServiceMonitor" in kinds(objects) and "PodMonitor" not in kinds(objects)
    with pytest.raises(RenderError, match="twice"):
        render({"monitoring": {"serviceMonitor": True, "podMonitor": True}})


def test_alerts_lead_to_the_runbooks_and_miss_the_fleets_of_their_own_release() -> None:
    objects = render({"monitoring": {"prometheusRule": True, "runbookUrl": "https://wiki.example.com/tokenfleet"}})

    rules = {rule["alert"]: rule for rule in of_kind(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]}
    assert len(rules) == len(ALERTS)
    for alert in ALERTS:
        page = f"https://wiki.example.com/tokenfleet/{alert.runbook}.md"
        assert rules[alert.name]["annotations"]["runbook_url"] == page
    own = "namespace='ns',pod=~'chat-tokenfleet-[a-z0-9]{1,10}-?[a-z0-9]{5}'"
    assert rules["TokenfleetScrapeMissing"]["expr"] == f"absent(tokenfleet:processes{{{own}}})"


def test_the_ops_port_is_reached_through_no_service_of_clients() -> None:
    services = [item for item in render(file="values-h100.yaml") if item["kind"] == "Service"]

    assert [port["targetPort"] for item in services for port in item["spec"]["ports"]] == ["http"]


def test_an_autoscaled_deployment_does_not_fight_for_its_replicas() -> None:
    objects = render(file="values-h100.yaml")

    scaler = of_kind(objects, "ScaledObject")["spec"]
    assert "replicas" not in of_kind(objects, "Deployment")["spec"]
    query = scaler["triggers"][0]["metadata"]["query"]
    pods = 'namespace="ns",pod=~"chat-tokenfleet-[a-z0-9]{1,10}-?[a-z0-9]{5}"'
    assert query == f"sum(vllm:num_requests_running{{{pods}}} + vllm:num_requests_waiting{{{pods}}})"
    behavior = scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert behavior["stabilizationWindowSeconds"] == 300
    assert behavior["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def _pods_scaled_by(values: Object) -> str:
    keda = {"autoscaling": {"kind": "keda", "kedaPrometheusAddress": "http://prometheus:9090"}}
    query = of_kind(render({**values, **keda}), "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (names,) = set(re.findall('pod=~"([^"]+)"', query))
    return str(names)


def test_a_fleet_is_scaled_by_its_own_pods_and_not_by_those_of_a_release_whose_name_goes_on() -> None:
    names = _pods_scaled_by({"fullnameOverride": "chat"})
    longest = "c" * 52

    assert re.fullmatch(names, "chat-6d4cf56db6-x7k2p")
    assert re.fullmatch(_pods_scaled_by({"fullnameOverride": longest}), f"{longest}-6d4cfx7k2p"), "cut by Kubernetes"
    for other in ("chat-big-6d4cf56db6-x7k2p", "chat-2-5", "chat-2-5-1", "chat-0"):
        assert not re.fullmatch(names, other)


def test_groups_are_scaled_by_their_first_pods() -> None:
    group = {
        "fullnameOverride": "chat",
        "model": {"source": "claim", "claim": "models"},
        "gpu": {"count": 8},
        "multiNode": {"enabled": True},
    }

    names = _pods_scaled_by(group)

    assert re.fullmatch(names, "chat-12")
    for other in ("chat-12-1", "chat-2-5", "chat-big-6d4cf56db6-x7k2p"):
        assert not re.fullmatch(names, other)


def test_several_gpus_are_for_as_many_engines_or_for_vllm() -> None:
    for engine in ({"engines": 4}, {"engine": "vllm", "vllm_python": "/opt/vllm/bin/python"}):
        objects = render({"gpu": {"count": 4}, "config": {"engine": engine}})

        assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_the_horizontal_autoscaler_goes_by_requests_in_flight() -> None:
    objects = render({"autoscaling": {"kind": "hpa", "targetRequestsPerReplica": 32}})

    scaler = of_kind(objects, "HorizontalPodAutoscaler")["spec"]
    (metric,) = scaler["metrics"]
    assert "replicas" not in of_kind(objects, "Deployment")["spec"]
    assert (metric["type"], metric["pods"]["metric"]["name"]) == ("Pods", "tokenfleet_requests_in_flight")
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "32"}
    assert scaler["behavior"]["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_a_rollout_never_has_fewer_pods_and_evictions_take_one() -> None:
    objects = render()

    assert of_kind(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    budget = of_kind(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == of_kind(objects, "Deployment")["spec"]["selector"]


def test_pods_are_spread_over_zones_and_nodes() -> None:
    objects = render()

    constraints = pod_spec(objects)["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    selector = of_kind(objects, "Deployment")["spec"]["selector"]
    assert all(c["labelSelector"] == selector and c["matchLabelKeys"] == ["pod-template-hash"] for c in constraints)


def test_the_network_is_open_to_clients_and_scrapes_only() -> None:
    policy = of_kind(render(), "NetworkPolicy")["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["http", "ops"]


def test_the_test_pod_may_pass_a_policy_that_names_its_clients() -> None:
    objects = render({"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "web"}}}]}})

    admitted = of_kind(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert admitted.items() <= of_kind(objects, "Pod")["metadata"]["labels"].items()


def test_a_gpu_is_requested_limited_and_tolerated() -> None:
    objects = render(file="values-h100.yaml")

    resources = container(objects)["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert pod_spec(objects)["tolerations"][0] == {
        "key": "nvidia.com/gpu",
        "operator": "Exists",
        "effect": "NoSchedule",
    }


def test_a_fleet_on_a_gpu_has_the_image_that_computes_there() -> None:
    """`DEVICE=gpu make image` adds to the chart's version what is looked for here."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]

    assert container(render(file="values-h100.yaml"))["image"] == f"tokenfleet:{version}-gpu"
    assert container(render(file="values-cpu.yaml"))["image"] == f"tokenfleet:{version}"
    assert "IMAGE=$IMAGE-gpu" in (REPOSITORY / "image" / "build.sh").read_text()


def test_the_image_keeps_its_compiled_kernels_where_the_chart_does() -> None:
    """A root that is read-only has no other place for them."""
    dockerfile = (REPOSITORY / "image" / "Dockerfile").read_text()

    variables = environment(render(file="values-h100.yaml"))
    for name in ("NUMBA_CACHE_DIR", "TRITON_CACHE_DIR", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"):
        assert f" {name}={variables[name]} " in dockerfile


def test_a_gpu_may_be_any_extended_resource() -> None:
    objects = render({"gpu": {"count": 2, "resourceName": "amd.com/gpu"}, "config": {"engine": {"engines": 2}}})

    assert container(objects)["resources"]["limits"]["amd.com/gpu"] == 2
    assert pod_spec(objects)["tolerations"][0]["key"] == "amd.com/gpu"


def test_a_route_leads_to_the_pool_and_the_pool_to_the_pods() -> None:
    objects = render(file="values-h100.yaml")

    pool, pods = of_kind(objects, "InferencePool"), of_kind(objects, "Deployment")["spec"]["template"]["metadata"]
    (backend,) = of_kind(objects, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", pool["metadata"]["name"])
    assert pool["spec"]["selector"]["matchLabels"].items() <= pods["labels"].items()
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    assert pods["labels"]["llm-d.ai/engine-type"] == "vllm"


def test_a_model_on_a_claim_is_mounted_read_only() -> None:
    objects = render(file="values-h100.yaml")

    mount = next(item for item in container(objects)["volumeMounts"] if item["name"] == "model")
    assert mount == {"name": "model", "mountPath": "/models", "readOnly": True}
    assert environment(objects)["TOKENFLEET_MODEL"] == "/models/qwen3-8b"


def group_of(objects: list[Object]) -> tuple[Object, Object]:
    """Specs of its first pod, and of the others."""
    template = of_kind(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    assert "Deployment" not in kinds(objects)
    return template["leaderTemplate"]["spec"], template["workerTemplate"]["spec"]


def test_every_rank_of_a_group_runs_the_same_vllm_and_the_first_pod_serves_in_front_of_it() -> None:
    first, other = group_of(render(file="values-nodes.yaml"))

    (server,), (sidecar,), (engine,) = first["containers"], first["initContainers"], other["containers"]
    assert sidecar == {**engine, "restartPolicy": "Always"}, "it would end before the streams have drained"
    assert engine["command"] == ["vllm", "serve", "/models/llama-3.1-405b"]
    assert {"--headless", "--nnodes=$(LWS_GROUP_SIZE)", "--node-rank=$(LWS_WORKER_INDEX)"} <= set(engine["args"])
    assert (
        engine["resources"]["limits"]["nvidia.com/gpu"] == 8 and "nvidia.com/gpu" not in server["resources"]["limits"]
    )
    variables = {variable["name"]: variable.get("value") for variable in server["env"]}
    assert variables["TOKENFLEET_ENGINE"] == "vllm"
    assert variables["TOKENFLEET_VLLM_HANDSHAKE"] == "tcp://127.0.0.1:29550"
    promised = {"--max-model-len=32768", "--max-num-seqs=256", "--gpu-memory-utilization=0.92"}
    assert {"--data-parallel-rpc-port=29550", *promised} <= set(engine["args"])
    for spec in (first, other):
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["automountServiceAccountToken"] is False
        for found in (*spec["containers"], *spec.get("initContainers", [])):
            assert found["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize(("seed", "flag"), [({}, "--seed=0"), ({"seed": 12345678901}, "--seed=12345678901")])
def test_the_vllm_of_a_group_has_the_servers_seed_and_its_priorities(seed: Object, flag: str) -> None:
    first, other = group_of(render({"config": {"engine": seed}}, file="values-nodes.yaml"))

    for spec in (first["initContainers"], other["containers"]):
        assert {flag, "--scheduling-policy=priority"} <= set(spec[0]["args"])


def test_the_server_accepts_its_configuration_in_front_of_a_group(tmp_path: Path) -> None:
    objects = render(file="values-nodes.yaml")
    path = tmp_path / "fleet.toml"
    path.write_text(_config_map(objects)["data"]["fleet.toml"])
    (server,) = group_of(objects)[0]["containers"]
    environ = {v["name"]: v["value"] for v in server["env"] if "value" in v and v["name"] != "TOKENFLEET_CONFIG"}

    configuration = load({}, environ, path)

    assert faults_of(configuration) == []
    assert configuration.settings.engine.engine == "vllm"


def test_clients_budgets_and_autoscalers_see_the_first_pods_only() -> None:
    values = {"autoscaling": {"kind": "keda", "kedaPrometheusAddress": "http://prometheus:9090"}}
    objects = render(values, "--api-versions", MONITORING_API, file="values-nodes.yaml")

    template = of_kind(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    first, other = (template[f"{role}Template"]["metadata"]["labels"].items() for role in ("leader", "worker"))
    selectors = [
        of_kind(objects, "Service")["spec"]["selector"],
        *(of_kind(objects, kind)["spec"]["selector"]["matchLabels"] for kind in ("PodDisruptionBudget", "PodMonitor")),
    ]
    assert all(selector.items() <= first and not selector.items() <= other for selector in selectors)
    assert of_kind(objects, "ScaledObject")["spec"]["scaleTargetRef"]["kind"] == "LeaderWorkerSet"


def test_the_pods_of_groups_reach_each_other_and_names_only() -> None:
    objects = render(file="values-nodes.yaml")

    (policy,) = (
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"].endswith("-groups")
    )
    group = {
        "matchLabels": {"leaderworkerset.sigs.k8s.io/name": of_kind(objects, "LeaderWorkerSet")["metadata"]["name"]}
    }
    assert policy["podSelector"] == group
    assert policy["ingress"] == [{"from": [{"podSelector": group}]}]
    assert policy["egress"][0] == {"to": [{"podSelector": group}]}
    assert [port["port"] for port in policy["egress"][1]["ports"]] == [53, 53]


def test_the_test_hook_chats_with_a_real_fleet(sim_fleet: Fleet) -> None:
    assert _run_test_hook(sim_fleet.base_url) == 0
    assert _run_test_hook(sim_fleet.ops_url) == 1


def test_the_test_hook_speaks_tls_and_takes_its_key_from_the_file(tmp_path: Path) -> None:
    key, chain = make_certificate(tmp_path)
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[a]\nsha256 = "{"0" * 64}"\n[b]\nkey = "sk-b"\n')
    flags = ("--api-key-file", str(keys), "--ssl-keyfile", str(key), "--ssl-certfile", str(chain))
    environ = {"API_KEYS_ARE_A_FILE": "yes", "API_KEYS": keys.read_text(), "CERTIFICATE": chain.read_text()}

    with Fleet(tmp_path / "log", "--engine", "sim", "--sim-step-ms", "1", "--workers", "1", *flags) as fleet:
        url = f"https://127.0.0.1:{fleet.port}"
        assert _run_test_hook(url, **environ) == 0
        assert _run_test_hook(url, **{**environ, "CERTIFICATE": ""}) == 1


def _run_test_hook(base_url: str, **environ: str) -> int:
    command = of_kind(render(), "Pod")["spec"]["containers"][0]
    script = command["args"][0]
    assert command["command"] == ["python3", "-c"]
    return subprocess.run(
        [sys.executable, "-c", script, base_url],
        capture_output=True, timeout=60, check=False, env={**os.environ, **environ},
    ).returncode  # fmt: skip
