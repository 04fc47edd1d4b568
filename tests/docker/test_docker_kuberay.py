"""RayCluster and RayJob against the schemas of KubeRay's custom resource definitions (CRDs), in `kuberay/`."""

import copy
import hashlib
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parent / "kuberay"
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
# sha256 of the files of each release, unpacked
RELEASES = {
    "1.6.1": {
        "RayCluster": "1d51d8c4ce065b22c2069af0ebd72ae25f4a6968e5c5f93a3106ba6fc35bcc1d",
        "RayJob": "ecae45d9a5dc1be68f1074ba784c495ef9d439d295253b61e1bd51f7b08522f5",
    },
    "1.7.0": {
        "RayCluster": "c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1",
        "RayJob": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
    },
}
Manifest = dict[str, Any]

# A CRD with each construct that `strict` converts
SMALL: Manifest = {
    "spec": {
        "group": "example.org",
        "names": {"kind": "Night"},
        "versions": [
            {"name": "v0", "schema": {"openAPIV3Schema": {"type": "object"}}},
            {
                "name": "v1",
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "metadata": {"type": "object"},
                            "spec": {
                                "type": "object",
                                "required": ["hours"],
                                "properties": {
                                    "hours": {"type": "integer", "format": "int32"},
                                    "memory": {
                                        "anyOf": [{"type": "integer"}, {"type": "string"}],
                                        "x-kubernetes-int-or-string": True,
                                        "pattern": "^[0-9]+(Gi)?$",
                                    },
                                    "note": {"type": "string", "nullable": True},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "steps": {
                                        "type": "array",
                                        "items": {"type": "object", "properties": {"name": {"type": "string"}}},
                                    },
                                },
                            },
                        },
                    }
                },
            },
        ],
    }
}
NIGHT: Manifest = {
    "apiVersion": "example.org/v1",
    "kind": "Night",
    "metadata": {"name": "a"},
    "spec": {
        "hours": 8,
        "memory": "4Gi",
        "note": None,
        "labels": {"a": "b"},
        "free": {"x": 1},
        "steps": [{"name": "s"}],
    },
}


def strict(schema: Any) -> Any:
    """Convert a CRD's structural schema to a JSON Schema that refuses unknown fields, as `kubectl apply` does.

    Rules in CEL (`x-kubernetes-validations`) are not evaluated.
    """
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    out = {
        key: {name: strict(entry) for name, entry in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
        if key not in ("default", "example", "nullable") and not key.startswith("x-kubernetes-")
    }
    kept = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in out and not kept:
        out["additionalProperties"] = False
    if schema.get("nullable"):
        return {"anyOf": [{"type": "null"}, out]}
    return out


def problems(manifest: Manifest, crd: Manifest) -> list[str]:
    """Return what a CRD's schema says against a manifest, as `spec.field: message`."""
    group, version = manifest["apiVersion"].split("/")
    assert (group, manifest["kind"]) == (crd["spec"]["group"], crd["spec"]["names"]["kind"])
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
    known = copy.deepcopy(schema)
    known["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    found = jsonschema.Draft202012Validator(strict(known)).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def test_the_conversion_accepts_what_a_crd_allows() -> None:
    assert problems(NIGHT, SMALL) == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"hours": "8"}, "spec.hours"),
        ({"hour": 8}, "spec"),
        ({"memory": "4GB"}, "spec.memory"),
        ({"memory": None}, "spec.memory"),
        ({"labels": {"a": 1}}, "spec.labels.a"),
        ({"steps": [{"nmae": "s"}]}, "spec.steps.0"),
    ],
)
def test_the_conversion_refuses_what_a_crd_does_not_allow(change: Manifest, path: str) -> None:
    (found,) = problems(NIGHT | {"spec": NIGHT["spec"] | change}, SMALL)
    assert found.startswith(f"{path}: ")


# --- with the real CRDs ---


@pytest.fixture(scope="session", params=RELEASES)
def crds(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    """KubeRay's CRDs by kind, of each release."""
    folder = FOLDER / request.param
    texts = {kind: lzma.decompress((folder / f"{name}.xz").read_bytes()) for kind, name in FILES.items()}
    assert {kind: hashlib.sha256(text).hexdigest() for kind, text in texts.items()} == RELEASES[request.param]
    return {kind: yaml.load(text, yaml.CSafeLoader) for kind, text in texts.items()}


def ours(manifests: list[Manifest]) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["apiVersion"].startswith("ray.io/"))


def test_rays_objects_match_kuberays_crds(manifests: list[Manifest], crds: dict[str, Manifest]) -> None:
    checked = list(ours(manifests))
    assert {manifest["kind"] for manifest in checked} == set(crds)
    for manifest in checked:
        assert problems(manifest, crds[manifest["kind"]]) == []


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (lambda spec: spec.update(rayversion="2.60.0"), "spec"),
        (
            lambda spec: spec["autoscalerOptions"].update(idleTimeoutSeconds="600"),
            "spec.autoscalerOptions.idleTimeoutSeconds",
        ),
        (lambda spec: spec["autoscalerOptions"].update(upscalingMode="Fast"), "spec.autoscalerOptions.upscalingMode"),
        (lambda spec: spec["authOptions"].update(secret="x"), "spec.authOptions"),
        (
            lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            "spec.headGroupSpec.rayStartParams",
        ),
        (
            lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(volumemounts=[]),
            "spec.headGroupSpec.template.spec.containers.0",
        ),
    ],
)
def test_kuberays_crds_refuse_errors(
    spoil: Callable[[Manifest], None], path: str, manifests: list[Manifest], crds: dict[str, Manifest]
) -> None:
    (cluster,) = [manifest for manifest in ours(manifests) if manifest["kind"] == "RayCluster"]
    spoiled = copy.deepcopy(cluster)
    spoil(spoiled["spec"])
    (found,) = problems(spoiled, crds["RayCluster"])
    assert found.startswith(path)
