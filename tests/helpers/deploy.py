"""What serving/deploy comes to: rendered manifests, the pods that they make, the image's instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "serving" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"

Document = dict[str, Any]


@cache
def render(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send."""
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize", str(folder)]
    elif kustomize := shutil.which("kustomize"):
        command = [kustomize, "build", str(folder)]
    else:
        pytest.fail("neither kubectl nor kustomize is on PATH; one of them is needed to render serving/deploy")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(documents: list[Document], kind: str) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def pod_of(documents: list[Document]) -> Document:
    """The pod that these documents make: a Deployment's, or the one that KServe puts together."""
    if "Deployment" in {document["kind"] for document in documents}:
        template = only(documents, "Deployment")["spec"]["template"]
        return {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "pod", **template["metadata"]}}
    runtime, service = only(documents, "ServingRuntime")["spec"], only(documents, "InferenceService")
    own = {"model", "autoScaling", "minReplicas", "maxReplicas", "deploymentStrategy"}
    rest = {key: value for key, value in service["spec"]["predictor"].items() if key not in own}
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    spec = {"containers": runtime["containers"], "volumes": runtime["volumes"], **rest}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "labels": labels}, "spec": spec}


def container(pod: Document) -> Document:
    found: Document
    (found,) = pod["spec"]["containers"]
    return found


def instruction(name: str) -> str:
    """The last such instruction of the Dockerfile, continuation lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    *_, last = re.finditer(rf"^\s*{name}\s+(.*)$", text, re.MULTILINE)
    return last[1]


def options(arguments: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value` by parameter name."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return {words[at].removeprefix("--").replace("-", "_"): words[at + 1] for at in range(0, len(words), 2)}


def arguments(pod: Document) -> list[str]:
    """The container's arguments: its own, or those of the image."""
    own: list[str] = container(pod).get("args") or yaml.safe_load(instruction("CMD"))
    return own
