"""The manifests: Kubernetes' schemas for core objects and pod templates, and this project's requirements.

test_docker_kuberay.py has KubeRay's own schemas.
"""

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
OLDEST, NEWEST = "1.30", "1.37"  # versions of the schemas
CORE = (
    *("Namespace", "Service", "ServiceAccount", "StatefulSet", "Deployment"),
    *("PersistentVolumeClaim", "NetworkPolicy"),
)
Manifest = dict[str, Any]

# Cloud metadata services and hosts: AWS and others, ECS, AWS by IPv6, GCP by IPv6, Alibaba, Oracle, Azure
METADATA = (
    *("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192"),
    *("168.63.129.16", "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe"),
)
PRIVATE = ("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "fe80::1", "fc00::1", "::1")
RAY = ("head", "cpu", "gpu")


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
        if "items" in value and {"secretName", "name"} & set(value):  # of a volume, or projected into one
            name = value.get("secretName") or value["name"]
            yield from ((name, item["key"]) for item in value["items"] if name.startswith("evosearch-"))
        elif "secretName" in value and not value.get("optional"):  # in authOptions
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


def test_the_kustomizations_files_and_images_exist(manifests: list[Manifest]) -> None:
    kustomization = yaml.safe_load((DOCKER / "kustomization.yaml").read_text())
    assert kustomization["namespace"] == "evosearch"
    generated = [file for entry in kustomization["configMapGenerator"] for file in entry["files"]]
    for file in (*kustomization["resources"], *kustomization["configurations"], *generated):
        assert (DOCKER / file).is_file(), file
    left_out = {f"k8s/{file.name}" for file in (DOCKER / "k8s").glob("*.yaml")} - set(kustomization["resources"])
    assert left_out == {"k8s/images.yaml", "k8s/rayjob.yaml"}, "a search is created, not applied"
    named = {c["image"].partition("@")[0] for t in templates(manifests).values() for c in t["spec"]["containers"]}
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
    images = {name: t["spec"]["containers"][0]["image"].partition("@")[0] for name, t in templates(objects).items()}
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
    made = {(secret["metadata"]["name"], key) for secret in yaml.safe_load_all(text) for key in secret["stringData"]}
    assert set(references(manifests)) == made


def mounts(container: Manifest) -> dict[str, Manifest]:
    """Return a container's mounts by path."""
    return {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}


def test_secrets_are_files_and_not_in_any_environment(manifests: list[Manifest]) -> None:
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    for name, template in templates(manifests).items():
        for container in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            paths = [path for path, mount in mounts(container).items() if mount.get("readOnly")]
            assert "envFrom" not in container
            for entry in container.get("env", []):
                assert set(entry) == {"name", "value"}, f"{name}: {entry['name']} comes from an object"
                if re.search(r"PASSWORD|TOKEN|SECRET|KEY|PASS", entry["name"]):
                    hidden = entry["value"] == "" or str(Path(entry["value"]).parent) in paths
                    assert hidden, f"{name}: {entry['name']} is no file of a read-only mount"


def test_only_the_head_has_credentials_of_the_database_and_mlflow(manifests: list[Manifest]) -> None:
    given = {name: set(references(template)) for name, template in templates(manifests).items()}
    token = ("evosearch-ray", "auth_token")
    assert given["cpu"] == given["gpu"] == given["submitter"] == {token}
    assert given["head"] == {
        token,
        ("evosearch-postgres", "evosearch_pgpass"),
        ("evosearch-mlflow", "tracking_credentials"),
    }
    assert {key for secret, key in given["mlflow"] if secret == "evosearch-postgres"} == {"mlflow_pgpass"}
    head = environment(templates(manifests)["head"])
    assert head["MLFLOW_TRACKING_URI"] == "http://mlflow:5000", "the server that gets the account"


def test_private_copies_of_secrets_are_made_before_the_programs_start(
    tmp_path: Path, manifests: list[Manifest]
) -> None:
    """The init containers' commands, run here: libpq requires files that only their owner can read."""
    for name in ("head", "mlflow"):
        spec = templates(manifests)[name]["spec"]
        (init,), (main,) = spec["initContainers"], spec["containers"]
        assert "/run/mounted" in mounts(init)
        assert "/run/mounted" not in mounts(main)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        secrets = volumes[mounts(main)["/run/secrets"]["name"]]
        assert secrets["emptyDir"]["medium"] == "Memory"
        assert mounts(main)["/run/secrets"]["readOnly"] is True
        root = tmp_path / name
        keys = [
            i["path"]
            for source in volumes["mounted-secrets"]["projected"]["sources"]
            for i in source["secret"]["items"]
        ]
        for folder in mounts(init):
            (root / folder.lstrip("/")).mkdir(parents=True)
        for key in keys:
            (root / "run" / "mounted" / key).write_text(key)
        script = re.sub(r"(?<![\w.])/(run|home)/", f"{root}/\\1/", init["args"][0])
        for _ in range(2):  # again after a restart of the pod's sandbox
            subprocess.run([*init["command"], script], check=True, timeout=60)
        made = {file.name: file.stat().st_mode & 0o777 for file in (root / "run" / "secrets").iterdir()}
        assert made == dict.fromkeys(keys, 0o400)
        files = [v for v in environment(templates(manifests)[name]).values() if str(v).startswith("/run/secrets/")]
        assert {Path(file).name for file in files} <= set(made)
    credentials = tmp_path / "head" / "home" / "evosearch" / ".mlflow" / "credentials"
    assert credentials.read_text() == "mlflow_credentials"


def test_all_nodes_use_an_optional_hub_token(manifests: list[Manifest]) -> None:
    for name, template in templates(manifests).items():
        (container,) = template["spec"]["containers"]
        path = environment(template).get("HF_TOKEN_PATH")
        assert (path == "/run/hub/token") == (name in RAY), name
        if name in RAY:
            (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == mounts(container)["/run/hub"]["name"]]
            assert volume["secret"] == {"secretName": "evosearch-hub", "optional": True, "defaultMode": 0o440}
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
        given = environment(templates(manifests)[name])
        assert given["RAY_AUTH_MODE"] == "token"
        assert given["RAY_AUTH_TOKEN"] == "", "the operator sets it unless it exists"
        assert Path(given["RAY_AUTH_TOKEN_PATH"]).name in ("ray_auth_token", "auth_token")


def test_ray_reads_the_file_if_the_variable_is_empty(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef" * 3)
    code = "from ray._raylet import AuthenticationTokenLoader as loader; print(loader.instance().get_raw_token())"
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    read = subprocess.run(
        [sys.executable, "-c", code], env=environ | given, capture_output=True, text=True, timeout=120, check=True
    )
    assert (tmp_path / "token").read_text() in read.stdout


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
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in rights
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_only_the_autoscaler_has_a_service_account_token(
    manifests: list[Manifest], one: Callable[[str, str], Manifest]
) -> None:
    found = templates(manifests)
    assert all(template["spec"]["automountServiceAccountToken"] is False for template in found.values())
    account = found["head"]["spec"]["serviceAccountName"]
    assert one("ServiceAccount", account)["automountServiceAccountToken"] is False
    assert all("serviceAccountName" not in template["spec"] for name, template in found.items() if name != "head")
    tokens = {
        (name, volume["name"])
        for name, template in found.items()
        for volume in template["spec"].get("volumes", [])
        if "serviceAccountToken" in json.dumps(volume)
    }
    ((pod, token),) = tokens
    assert pod == "head"
    own = found["head"]["spec"]
    for container in (*own["initContainers"], *own["containers"]):
        assert token not in {mount["name"] for mount in mounts(container).values()}, "jobs run in this container"
    autoscaler = one("RayCluster", "evosearch")["spec"]["autoscalerOptions"]
    given = mounts(autoscaler)["/var/run/secrets/kubernetes.io/serviceaccount"]  # where Ray's autoscaler reads it
    assert (given["name"], given["readOnly"]) == (token, True)
    assert autoscaler["securityContext"] == own["containers"][0]["securityContext"]


def test_the_autoscalers_token_is_where_ray_reads_it() -> None:
    from ray.autoscaler._private.kuberay import node_provider

    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert f"{folder}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
    assert f"{folder}/ca.crt" == node_provider.IN_CLUSTER_CA_CERT_PATH


def test_writable_paths_are_named_volumes(manifests: list[Manifest], one: Callable[[str, str], Manifest]) -> None:
    writable = {
        name: {path for path, mount in mounts(template["spec"]["containers"][0]).items() if not mount.get("readOnly")}
        for name, template in templates(manifests).items()
    }
    ray = {"/data", "/tmp", "/tmp/ray", "/home/evosearch"}  # and /dev/shm, by the operator
    assert writable == {
        "postgres": {"/var/lib/postgresql/data", "/var/run/postgresql", "/tmp", "/dev/shm"},
        "mlflow": {"/artifacts", "/tmp", "/home/evosearch"},
        **dict.fromkeys(RAY, ray),
        "submitter": {"/tmp"},
    }
    autoscaler = mounts(one("RayCluster", "evosearch")["spec"]["autoscalerOptions"])
    assert {path for path, mount in autoscaler.items() if not mount.get("readOnly")} == {"/tmp", "/tmp/ray"}
    cpu, gpu = (templates(manifests)[name]["spec"]["volumes"] for name in ("cpu", "gpu"))
    assert cpu[1:] == gpu[1:]


def test_all_containers_have_resources_and_probes(manifests: list[Manifest]) -> None:
    for name, template in templates(manifests).items():
        for container in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
            probes = [probe for probe in container if probe.endswith("Probe")]
            assert len(probes) == (0 if name == "submitter" else 3), name
        users = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        mounted = {mount["name"] for container in users for mount in container.get("volumeMounts", [])}
        if name == "head":
            mounted |= {"autoscaler-account", "autoscaler-tmp"}
        claimed = ["data"] if name == "postgres" else []  # by its volumeClaimTemplates
        assert mounted == {volume["name"] for volume in template["spec"].get("volumes", [])} | set(claimed), name


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


def chooses(selector: Manifest, own: dict[str, str]) -> bool:
    """Return whether a label selector selects a pod with these labels."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "NotIn"
        if own.get(rule["key"]) in rule["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= own.items())


def policies(manifests: list[Manifest], own: dict[str, str], direction: str) -> Iterator[Manifest]:
    """Yield the rules of one direction that apply to a pod."""
    for manifest in manifests:
        spec = manifest["spec"] if manifest["kind"] == "NetworkPolicy" else {}
        if spec and chooses(spec["podSelector"], own):
            assert direction not in spec or direction.capitalize() in spec["policyTypes"]
            yield from spec.get(direction, [])


def test_everything_is_denied_by_default(one: Callable[[str, str], Manifest]) -> None:
    assert one("NetworkPolicy", "default-deny")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_allowed_connections_between_pods(manifests: list[Manifest]) -> None:
    pods = {name: labels(name, template) for name, template in templates(manifests).items()}

    def allowed(direction: str, peers: str) -> set[tuple[str, str, int | str]]:
        return {
            (*((name, other) if direction == "egress" else (other, name)), port["port"])
            for name, own in pods.items()
            for rule in policies(manifests, own, direction)
            for peer in rule[peers]
            if set(peer) == {"podSelector"}
            for other, theirs in pods.items()
            if chooses(peer["podSelector"], theirs)
            for port in rule.get("ports", [{"port": "all"}])
        }

    expected = {
        ("mlflow", "postgres", 5432),
        ("head", "postgres", 5432),
        ("head", "mlflow", 5000),
        ("submitter", "head", 8265),
        *((source, target, "all") for source in RAY for target in RAY),
    }
    assert allowed("ingress", "from") == expected
    assert allowed("egress", "to") == expected, "both ends of a connection must allow it"


def test_pods_resolve_names_and_postgresql_opens_no_connection(manifests: list[Manifest]) -> None:
    for name, template in templates(manifests).items():
        rules = list(policies(manifests, labels(name, template), "egress"))
        if name == "postgres":
            assert rules == []
            continue
        (dns,) = [rule for rule in rules if "namespaceSelector" in rule["to"][0]]
        assert {(port["protocol"], port["port"]) for port in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
        ((peer),) = dns["to"]
        assert peer["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}, "only the DNS servers of kube-system"


def reachable(manifests: list[Manifest], own: dict[str, str], address: str) -> set[int | str]:
    """Return the ports on which a pod may connect to an address outside of the cluster."""
    target = ipaddress.ip_address(address)
    return {
        port["port"]
        for rule in policies(manifests, own, "egress")
        for peer in rule["to"]
        if "ipBlock" in peer
        and target in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        and not any(target in ipaddress.ip_network(block) for block in peer["ipBlock"]["except"])
        for port in rule.get("ports", [{"port": "all"}])
    }


@pytest.mark.parametrize("address", [*METADATA, *PRIVATE])
def test_no_pod_reaches_a_metadata_service_or_a_private_address(manifests: list[Manifest], address: str) -> None:
    for name, template in templates(manifests).items():
        assert reachable(manifests, labels(name, template), address) == set(), name


@pytest.mark.parametrize("address", ["8.8.8.8", "172.15.0.1", "172.32.0.1", "2606:4700::1"])
def test_only_ray_nodes_reach_public_addresses_by_https(manifests: list[Manifest], address: str) -> None:
    for name, template in templates(manifests).items():
        assert reachable(manifests, labels(name, template), address) == ({443} if name in RAY else set()), name


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
        plain = {key for key in theirs if not str(theirs[key]).startswith("/run/secrets/")} - {"MLFLOW_ACCOUNT"}
        assert {key: ours[key] for key in plain} == {key: theirs[key] for key in plain}
    assert environment(found["mlflow"]) == {
        **services["mlflow"]["environment"],
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/mlflow_auth.ini",
    }
    secrets = {mount["path"] for mount in found["postgres"]["spec"]["volumes"][1]["secret"]["items"]}
    assert secrets == {grant["source"] for grant in services["postgres"]["secrets"]}


def test_the_namespace_warns_about_unrestricted_pods(one: Callable[[str, str], Manifest]) -> None:
    own = one("Namespace", "evosearch")["metadata"]["labels"]
    assert {own[f"pod-security.kubernetes.io/{kind}"] for kind in ("warn", "audit")} == {"restricted"}
