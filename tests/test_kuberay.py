"""The manifests for Kubernetes: every field is one that the operator or Kubernetes knows, and they fit one another.

``data/kuberay.json`` is the strict schema of what the manifests may use of ``ray.io/v1``, written from the field reference
of KubeRay 1.6; ``data/kubernetes.json`` holds Kubernetes 1.30's own definitions, strict and without their descriptions.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from massive_sft.core.errors import ExitCode
from massive_sft.scheduling import end_request

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
DEFINITIONS = {**json.loads((DATA / "kubernetes.json").read_text()), **json.loads((DATA / "kuberay.json").read_text())}
KINDS = {
    "RayCluster": "RayCluster",
    "RayJob": "RayJob",
    "Job": "io.k8s.api.batch.v1.Job",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
}
FREE = frozenset(
    {"rayStartParams", "requests", "limits", "nodeSelector", "labels", "annotations"}
)  # their keys are free
Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Return all documents of ``cluster/*.yaml``, nothing shared between them or within."""
    files = sorted((ROOT / "cluster").glob("*.yaml"))
    found = [document for file in files for document in YAML(typ="safe").load_all(file.read_text())]
    return [json.loads(json.dumps(document)) for document in found]


MANIFESTS = manifests()
of_each = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")


def problems(manifest: Manifest) -> list[str]:
    schema = {"$ref": f"#/$defs/{KINDS[manifest['kind']]}", "$defs": DEFINITIONS}
    return [error.message for error in Draft202012Validator(schema).iter_errors(manifest)]


def mappings(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping within, with the key that it stands under."""
    if isinstance(value, dict):
        yield name, value
        for key, inner in value.items():
            yield from mappings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from mappings(inner, name)


def pods(manifest: Manifest) -> list[Manifest]:
    return [value["spec"] for name, value in mappings(manifest) if name == "template"]


def test_all_kinds_are_there() -> None:
    assert sorted(manifest["kind"] for manifest in MANIFESTS) == sorted(KINDS)


@of_each
def test_manifest_is_valid(manifest: Manifest) -> None:
    assert problems(manifest) == []


@of_each
def test_any_misspelt_field_is_found(manifest: Manifest) -> None:
    fields = sum(len(value) for name, value in mappings(manifest) if name not in FREE)
    for number in range(fields):
        spoilt = copy.deepcopy(manifest)
        places = [(value, key) for name, value in mappings(spoilt) if name not in FREE for key in value]
        value, key = places[number]
        if key == "kind":
            continue  # says which schema it is
        value[key + "x"] = value.pop(key)
        assert problems(spoilt), key


@of_each
def test_mounts_have_volumes_and_secrets_are_references(manifest: Manifest) -> None:
    for pod in pods(manifest):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["envFrom"] == [{"secretRef": {"name": "massive-sft-env", "optional": True}}]
            assert not [one for one in container["env"] if re.search("TOKEN|PASSWORD|SECRET|KEY", one["name"])]
            environment = {one["name"]: one["value"] for one in container["env"]}
            assert environment["RUNS"].startswith("/shared/") and environment["HF_HOME"].startswith("/shared/")
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests == limits, "a pod of the best class is evicted last"


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_cluster_has_what_a_run_needs(kind: str) -> None:
    (spec,) = (one["spec"] for one in MANIFESTS if one["kind"] == kind)
    cluster = spec.get("rayClusterSpec", spec)
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["authOptions"] == {"mode": "token"} and cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    worker, head = group["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]
    assert int(worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) > 0
    assert worker["tolerations"] and worker["nodeSelector"]
    for pod in (head, worker):
        (container,) = pod["containers"]
        (wait,) = (one["value"] for one in container["env"] if one["name"] == end_request.WAIT)
        assert end_request.ENOUGH_S <= int(wait) <= pod["terminationGracePeriodSeconds"]
        (notice,) = (one["value"] for one in container["env"] if "DRAIN_TIMEOUT" in one["name"])
        assert end_request.ENOUGH_S <= int(notice) < pod["terminationGracePeriodSeconds"]
        assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        (memory,) = (one["emptyDir"] for one in pod["volumes"] if one["name"] == "memory")
        assert memory["medium"] == "Memory"


def test_job_retries_what_may_get_further_and_nothing_else() -> None:
    (spec,) = (one["spec"] for one in MANIFESTS if one["kind"] == "RayJob")
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    (final,) = re.findall(r"in ([\d|]+)\)", spec["entrypoint"])
    others = set(ExitCode) - {ExitCode.COMPLETE, ExitCode.TRY_AGAIN}
    assert {int(code) for code in final.split("|")} == others
