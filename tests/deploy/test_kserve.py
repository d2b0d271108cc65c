"""serving/deploy/kserve: the fields that KServe and KEDA read; their CRDs are in no package that could be installed."""

from __future__ import annotations

import re

from helpers.deploy import DEPLOY, only, render

from zipvl_serving.gateway.launch_triton import TritonPorts
from zipvl_serving.metrics import PREFIX


def test_resources_fit_together() -> None:
    documents = render(DEPLOY / "kserve")
    runtime, service = only(documents, "ServingRuntime"), only(documents, "InferenceService")
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    (known,) = runtime["spec"]["supportedModelFormats"]
    assert model["modelFormat"].items() <= known.items() and known["autoSelect"] is True
    assert runtime["spec"]["protocolVersions"] == ["v2", "grpc-v2"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    served = runtime["spec"]["containers"][0]
    assert served["name"] == "kserve-container" and served["command"][2] == "/mnt/models"
    # The first port is the InferenceService's URL: one that speaks v2, and asks for no key.
    assert served["ports"][0]["containerPort"] == TritonPorts().http_port
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(TritonPorts().metrics_port)
    assert re.match(r"(s3|gs|pvc|oci|https)://", model["storageUri"])


def test_scales_through_keda() -> None:
    documents = render(DEPLOY / "kserve")
    service = only(documents, "InferenceService")
    annotations, predictor = service["metadata"]["annotations"], service["spec"]["predictor"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == "keda"
    (label,) = only(documents, "PodMonitor")["spec"]["podTargetLabels"]
    chosen = f'{re.sub("[./]", "_", label)}="{service["metadata"]["name"]}"'
    for metric in predictor["autoScaling"]["metrics"]:
        assert metric["type"] == "External" and metric["external"]["metric"]["backend"] == "prometheus"
        # KServe reads the threshold from `value` alone.
        assert metric["external"]["target"].keys() == {"type", "value"}
        query = metric["external"]["metric"]["query"]
        assert query.startswith("sum(") and query.count(chosen) == len(re.findall(rf"\b{PREFIX}", query))
