"""The chart rendered by the real helm, as parsed objects."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "tokenfleet"
HELM = Path(os.environ.get("HELM", REPOSITORY / ".tools" / "helm"))
MONITORING_API = "monitoring.coreos.com/v1"

Object = dict[str, Any]  # Any: a Kubernetes object

needs_helm = pytest.mark.skipif(not HELM.exists(), reason="helm is not there: make chart-tools")


class RenderError(Exception):
    """What helm says against the values."""


def helm(*arguments: str) -> str:
    """Standard output. Raises RenderError."""
    done = subprocess.run([str(HELM), *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RenderError(done.stderr + done.stdout)
    return done.stdout


def render(values: Object | None = None, *flags: str, file: str | None = None) -> list[Object]:
    """Objects of release `chat` in namespace `ns`. `file` is one of the chart's values files."""
    command = [str(HELM), "template", "chat", str(CHART), "--namespace", "ns", *flags]
    if file is not None:
        command += ["--values", str(CHART / file)]
    done = subprocess.run(
        [*command, "--values", "-"],
        input=json.dumps(values or {}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RenderError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: list[Object], kind: str) -> Object:
    """The only one of its kind."""
    (found,) = [item for item in objects if item["kind"] == kind]
    return found


def kinds(objects: list[Object]) -> set[str]:
    return {item["kind"] for item in objects}


def pod_spec(objects: list[Object]) -> Object:
    spec: Object = of_kind(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(objects: list[Object]) -> Object:
    (found,) = pod_spec(objects)["containers"]
    return dict(found)


def environment(objects: list[Object]) -> dict[str, str]:
    """Of the server's container; what comes from a Secret reads `secret:NAME/KEY`."""
    variables = {}
    for variable in container(objects)["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        variables[variable["name"]] = (
            variable["value"] if secret is None else f"secret:{secret['name']}/{secret['key']}"
        )
    return variables


def crd_faults(objects: list[Object]) -> str:
    """What the published schemas of the CRDs say against these objects."""
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "charts/validate_crds.mjs"],
        input=json.dumps(objects), capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout
