"""The manifests: Kubernetes' schemas for core objects, KubeRay's field names, and this project's requirements."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OLDEST, NEWEST = "1.30", "1.37"  # versions of the schemas
CORE = ("Namespace", "Service", "StatefulSet", "Deployment", "PersistentVolumeClaim", "NetworkPolicy")
Manifest = dict[str, Any]

# Fields of ray.io/v1, KubeRay 1.6 and newer, with their types.
CLUSTER = {
    "rayVersion": str,
    "authOptions": dict,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
AUTH = {"mode": str, "secretName": str}
AUTOSCALER = {"upscalingMode": str, "idleTimeoutSeconds": int, "resources": dict, "securityContext": dict}
HEAD = {"serviceType": str, "rayStartParams": dict, "template": dict}
GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": dict,
    "template": dict,
}
JOB = {
    "clusterSelector": dict,
    "submissionMode": str,
    "entrypoint": str,
    "entrypointResources": str,
    "submitterPodTemplate": dict,
}


def templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return all pod templates by name."""
    found = {}
    for manifest in manifests:
        spec, name = manifest.get("spec", {}), manifest["metadata"].get("name", manifest["kind"])
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            found[name] = spec["template"]
        elif manifest["kind"] == "RayCluster":
            found["head"] = spec["headGroupSpec"]["template"]
            found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
        elif manifest["kind"] == "RayJob":
            found["submitter"] = spec["submitterPodTemplate"]
    return found


def environment(template: Manifest) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def labels(name: str, template: Manifest) -> dict[str, str]:
    """Return a pod's labels, including those that KubeRay adds."""
    own = template.get("metadata", {}).get("labels", {})
    if name in ("head", "cpu", "gpu"):
        own = own | {"ray.io/cluster": "evosearch", "ray.io/node-type": "head" if name == "head" else "worker"}
    return own


def references(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (secret, key) of every required secret that is referenced in a value."""
    if isinstance(value, dict):
        if "secretKeyRef" in value and not value["secretKeyRef"].get("optional"):
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "secretName" in value and "items" in value:
            yield from ((value["secretName"], item["key"]) for item in value["items"])
        elif "secretName" in value:  # in authOptions
            yield value["secretName"], "auth_token"
        for entry in value.values():
            yield from references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from references(entry)


# --- schemas ---


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_core_objects_match_kubernetes_schemas(manifests: list[Manifest], version: str) -> None:
    checked = [manifest for manifest in manifests if not manifest["apiVersion"].startswith("ray.io/")]
    assert {manifest["kind"] for manifest in checked} == set(CORE)
    for manifest in checked:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_rays_pod_templates_match_kubernetes_schemas(manifests: list[Manifest], version: str) -> None:
    for name, template in templates(manifests).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name} | template.get("metadata", {})}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


def test_the_schemas_reject_an_unknown_field(one: Callable[[str, str], Manifest]) -> None:
    pod = one("RayCluster", "evosearch")["spec"]["headGroupSpec"]["template"]["spec"]
    spoiled = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "head"},
        "spec": pod | {"restartpolicy": "Never"},
    }
    with pytest.raises(kubernetes_validate.ValidationError, match="restartpolicy"):
        kubernetes_validate.validate(spoiled, NEWEST, strict=True)


def test_rays_objects_use_kuberays_fields(manifests: list[Manifest], one: Callable[[str, str], Manifest]) -> None:
    cluster = one("RayCluster", "evosearch")
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    spec = cluster["spec"]
    typed = [(spec, CLUSTER), (spec["authOptions"], AUTH), (spec["autoscalerOptions"], AUTOSCALER), (job["spec"], JOB)]
    typed += [(spec["headGroupSpec"], HEAD), *((group, GROUP) for group in spec["workerGroupSpecs"])]
    for value, fields in typed:
        assert set(value) == set(fields)
        assert [key for key, kind in fields.items() if not isinstance(value[key], kind)] == []
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert spec["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    assert job["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")


def test_the_kustomizations_files_and_images_exist(manifests: list[Manifest]) -> None:
    kustomization = yaml.safe_load((DOCKER / "kustomization.yaml").read_text())
    assert kustomization["namespace"] == "evosearch"
    generated = [file for entry in kustomization["configMapGenerator"] for file in entry["files"]]
    for file in (*kustomization["resources"], *kustomization["configurations"], *generated):
        assert (DOCKER / file).is_file(), file
    left_out = {f"k8s/{file.name}" for file in (DOCKER / "k8s").glob("*.yaml")} - set(kustomization["resources"])
    assert left_out == {"k8s/images.yaml", "k8s/rayjob.yaml"}, "a search is created, not applied"
    named = {c["image"] for t in templates(manifests).values() for c in t["spec"]["containers"]}
    assert named == {"postgres:17-bookworm", "evosearch:cpu"} | {entry["name"] for entry in kustomization["images"]}
    config_maps = {
        volume["configMap"]["name"]
        for template in templates(manifests).values()
        for volume in template["spec"].get("volumes", [])
        if "configMap" in volume
    }
    assert config_maps == {entry["name"] for entry in kustomization["configMapGenerator"]}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_sets_namespace_images_and_config() -> None:
    command = ["kubectl", "kustomize", str(DOCKER)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    objects = list(yaml.safe_load_all(made.stdout))
    assert all(o["metadata"]["namespace"] == "evosearch" for o in objects if o["kind"] != "Namespace")
    images = {name: t["spec"]["containers"][0]["image"] for name, t in templates(objects).items()}
    assert images == {
        "postgres": "postgres:17-bookworm",
        "mlflow": "evosearch:cpu",
        "head": "evosearch:cpu",
        "cpu": "evosearch:cpu",
        "gpu": "evosearch:cuda",
    }
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    assert [list(data) for data in maps.values()] == [["mlflow_auth.ini"], ["databases.sql"]]
    mounted = {
        v["configMap"]["name"] for t in templates(objects).values() for v in t["spec"]["volumes"] if "configMap" in v
    }
    assert mounted == set(maps)


# --- secrets ---


def test_make_secrets_creates_exactly_the_referenced_secrets(manifests: list[Manifest]) -> None:
    text = (DOCKER / "k8s" / "make-secrets").read_text().split("<<END\n")[1].split("END\n")[0]
    made = {
        (secret["metadata"]["name"], key)
        for secret in yaml.safe_load_all(text.replace('"$(random)"', "x"))
        for key in secret["stringData"]
    }
    assert set(references(manifests)) == made


def test_no_secret_is_in_a_file(manifests: list[Manifest]) -> None:
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    for name, template in templates(manifests).items():
        for key, value in environment(template).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY|PGPASS", key):
                hidden = isinstance(value, dict) and set(value) == {"secretKeyRef"}
                assert hidden or str(value).startswith("/run/secrets/"), f"{name}: {key}"


def test_only_the_head_has_credentials_of_the_database_and_mlflow(manifests: list[Manifest]) -> None:
    given = {name: set(references(template)) for name, template in templates(manifests).items()}
    assert given["cpu"] == given["gpu"] == set(), "the operator sets the token"
    assert given["head"] == {("evosearch-postgres", "evosearch_password"), ("evosearch-mlflow", "tracking_password")}
    assert given["submitter"] == {("evosearch-ray", "auth_token")}
    assert ("evosearch-postgres", "postgres_password") not in given["mlflow"]
    head = environment(templates(manifests)["head"])
    assert head["PGHOST"] == "postgres", "the server that gets PGPASSWORD"
    assert head["MLFLOW_TRACKING_URI"] == "http://mlflow:5000", "the server that gets the account"


def test_all_nodes_use_an_optional_hub_token(manifests: list[Manifest]) -> None:
    found = templates(manifests)
    hub = {"secretKeyRef": {"name": "evosearch-hub", "key": "token", "optional": True}}
    given = {name: environment(template).get("HF_TOKEN") for name, template in found.items()}
    assert given == dict.fromkeys(found) | dict.fromkeys(("head", "cpu", "gpu"), hub)
    command = "create secret generic evosearch-hub --from-file=token=FILE"
    assert command in (DOCKER / "README.md").read_text()


def test_files_from_the_hub_are_in_a_volume(manifests: list[Manifest]) -> None:
    for name in ("head", "cpu", "gpu"):
        template = templates(manifests)[name]
        (container,) = template["spec"]["containers"]
        home = Path(environment(template)["HF_HOME"])
        assert home.is_relative_to(environment(template)["EVOSEARCH_CACHE"])
        assert [m["name"] for m in container["volumeMounts"] if home.is_relative_to(m["mountPath"])] == ["data"], name


def test_ray_requires_a_token(manifests: list[Manifest], one: Callable[[str, str], Manifest]) -> None:
    assert one("RayCluster", "evosearch")["spec"]["authOptions"] == {"mode": "token", "secretName": "evosearch-ray"}
    for name in ("head", "cpu", "gpu", "submitter"):
        assert environment(templates(manifests)[name])["RAY_AUTH_MODE"] == "token"


# --- permissions ---


def test_all_pods_comply_with_the_restricted_standard(manifests: list[Manifest]) -> None:
    found = templates(manifests)
    assert set(found) == {"postgres", "mlflow", "head", "cpu", "gpu", "submitter"}
    for name, template in found.items():
        pod = template["spec"]
        assert {"hostNetwork", "hostPID", "hostIPC"} & set(pod) == set()
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (999 if name == "postgres" else 10001)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in rights
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_only_the_head_has_a_service_account_token_for_the_autoscaler(manifests: list[Manifest]) -> None:
    found = templates(manifests)
    assert [name for name in found if found[name]["spec"].get("automountServiceAccountToken", True)] == ["head"]
    rights = next(m for m in manifests if m["kind"] == "RayCluster")["spec"]["autoscalerOptions"]["securityContext"]
    assert rights == found["head"]["spec"]["containers"][0]["securityContext"]


def test_all_containers_have_resources_and_probes(manifests: list[Manifest]) -> None:
    for name, template in templates(manifests).items():
        for container in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            probes = [probe for probe in container if probe.endswith("Probe")]
            assert len(probes) == (0 if name == "submitter" else 3), name
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            claimed = ["data"] if name == "postgres" else []  # by its volumeClaimTemplates
            volumes = [volume["name"] for volume in template["spec"].get("volumes", [])] + claimed
            assert sorted(mounted) == sorted(volumes), name


# --- consistency ---


def test_services_select_existing_pods_and_ports(manifests: list[Manifest]) -> None:
    pods = {
        name: (labels(name, t), t["spec"]["containers"][0]["ports"])
        for name, t in templates(manifests).items()
        if name in ("postgres", "mlflow")
    }
    for service in (manifest for manifest in manifests if manifest["kind"] == "Service"):
        own, ports = pods[service["metadata"]["name"]]
        assert service["spec"]["selector"].items() <= own.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in ports}
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_allowed_connections(manifests: list[Manifest]) -> None:
    pods = {name: labels(name, template) for name, template in templates(manifests).items()}
    policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    assert policies[0] == {"podSelector": {}, "policyTypes": ["Ingress"]}, "default: deny"

    def chosen(selector: Manifest) -> set[str]:
        return {name for name, own in pods.items() if selector.get("matchLabels", {}).items() <= own.items()}

    allowed = {
        (source, target, port["port"])
        for policy in policies[1:]
        for rule in policy["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" not in peer
        for source in chosen(peer["podSelector"])
        for target in chosen(policy["podSelector"])
        for port in rule.get("ports", [{"port": "all"}])
    }
    ray = ("head", "cpu", "gpu")
    assert allowed == {
        ("mlflow", "postgres", 5432),
        ("head", "postgres", 5432),
        ("head", "mlflow", 5000),
        ("submitter", "head", 8265),
        *((source, target, "all") for source in ray for target in ray),
    }
    out = {next(iter(chosen(p["podSelector"]))): p["egress"] for p in policies if "Egress" in p["policyTypes"]}
    assert out["postgres"] == []
    assert [rule["ports"][0]["port"] for rule in out["mlflow"]] == [5432, 53]


def test_the_cluster_scales_up(one: Callable[[str, str], Manifest]) -> None:
    spec = one("RayCluster", "evosearch")["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    gpus = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for group in spec["workerGroupSpecs"]
    }
    assert gpus == {"cpu": None, "gpu": "1"}
    start = spec["headGroupSpec"]["rayStartParams"]
    assert start["num-cpus"] == "0"
    assert json.loads(json.loads(start["resources"])) == {"evosearch_search": 1}, "KubeRay requires double quoting"


def test_rays_version_is_that_of_the_image(one: Callable[[str, str], Manifest]) -> None:
    pinned = re.search(r"^ray==(\S+) ", (ROOT / "scripts" / "lock.txt").read_text(), re.MULTILINE)
    assert pinned
    assert one("RayCluster", "evosearch")["spec"]["rayVersion"] == pinned[1]


def test_the_job_runs_a_spec_in_the_image(manifests: list[Manifest]) -> None:
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    assert job["metadata"]["namespace"] == "evosearch"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": "evosearch"}
    assert json.loads(job["spec"]["entrypointResources"]) == {"evosearch_search": 1}
    program, command, spec, *rest = job["spec"]["entrypoint"].split()
    assert (program, command, rest) == ("evosearch", "run", ["--progress", "json"])
    assert (ROOT / spec.removeprefix("/opt/evosearch/")).is_file()


def test_compose_and_kubernetes_use_the_same_commands_and_settings(
    manifests: list[Manifest], compose: Callable[..., Manifest]
) -> None:
    services, found = compose()["services"], templates(manifests)
    for name in ("postgres", "mlflow"):
        assert found[name]["spec"]["containers"][0]["args"] == services[name]["command"]
    initdb = "POSTGRES_INITDB_ARGS"
    assert environment(found["postgres"])[initdb] == services["postgres"]["environment"][initdb]
    for name, service in {"head": "head", "cpu": "worker", "gpu": "worker-gpu"}.items():
        ours, theirs = environment(found[name]), services[service]["environment"]
        plain = {key for key in theirs if not str(theirs[key]).startswith("/run/secrets/")}
        assert {key: ours[key] for key in plain} == {key: theirs[key] for key in plain}
    secrets = {mount["path"] for mount in found["postgres"]["spec"]["volumes"][1]["secret"]["items"]}
    assert secrets == {grant["source"] for grant in services["postgres"]["secrets"]}


def test_the_namespace_warns_about_unrestricted_pods(one: Callable[[str, str], Manifest]) -> None:
    own = one("Namespace", "evosearch")["metadata"]["labels"]
    assert {own[f"pod-security.kubernetes.io/{kind}"] for kind in ("warn", "audit")} == {"restricted"}
