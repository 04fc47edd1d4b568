"""The Compose files: schema, and this project's requirements."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.execution.ray_jobs import QUEUE, SETTINGS

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = ("compose.yaml", "compose.s3.yaml", "compose.hub.yaml")
S3 = {
    "S3_ARTIFACTS": "s3://bucket/prefix",
    "S3_ENDPOINT_URL": "https://s3.example.org",
    "S3_REGION": "here",
    "S3_ACCESS_KEY_ID": "some-name",
}
SERVICES = ("postgres", "mlflow", "head", "worker", "worker-gpu")
Compose = Callable[..., dict[str, Any]]


def schema_errors(*files: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def options(command: list[str]) -> dict[str, str]:
    """Return {"--name": "value"} for the options --name=value of a command."""
    return {part.partition("=")[0]: part.partition("=")[2] for part in command if part.startswith("--")}


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from (str(key), *strings(entry))
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)
    else:
        yield str(value)


def test_schema(tmp_path: Path) -> None:
    files = [DOCKER / name for name in FILES]
    assert schema_errors(*files).startswith("ok")
    spoiled = yaml.safe_load(files[0].read_text())
    spoiled["services"]["head"]["healtcheck"] = {}
    (tmp_path / "spoiled.yaml").write_text(yaml.safe_dump(spoiled))
    errors = schema_errors(*files, tmp_path / "spoiled.yaml")
    assert "healtcheck" in errors
    assert not any(f"{file}::" in errors for file in files)


def test_the_services(compose: Compose) -> None:
    assert tuple(compose()["services"]) == SERVICES


def test_all_variables_come_from_make_env_or_have_a_default(compose: Compose) -> None:
    compose("compose.yaml", "compose.hub.yaml")
    compose(*FILES, **S3)


def test_the_readme_lists_all_settings_with_their_defaults() -> None:
    rows = [row.split("|")[1:3] for row in (DOCKER / "README.md").read_text().splitlines() if row.startswith("| `")]
    listed = {}
    for names, defaults in rows:
        pairs = zip(re.findall(r"`([A-Z][A-Z_]+)`", names), re.split(r", ", defaults.strip()), strict=False)
        listed |= dict(pairs)
    found = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (DOCKER / "compose.yaml").read_text()))
    assert listed == {name: default.partition("@")[0] for name, default in found.items()}, "digests are left out"


@pytest.mark.parametrize("name", S3)
def test_s3_needs_all_its_settings(compose: Compose, name: str) -> None:
    with pytest.raises(LookupError, match=f"^{name} is not set"):
        compose("compose.yaml", "compose.s3.yaml", **{key: value for key, value in S3.items() if key != name})


def test_without_make_env_compose_fails_with_an_instruction(compose: Compose) -> None:
    with pytest.raises(LookupError, match=r"^MLFLOW_AUTH_ADMIN_USERNAME is not set\. Run docker/make-env first$"):
        compose(unset=("MLFLOW_AUTH_ADMIN_USERNAME",))


def test_secrets_come_from_make_env_and_each_is_used(compose: Compose, env: dict[str, str]) -> None:
    files = compose()
    assert {entry["environment"] for entry in files["secrets"].values()} <= set(env)
    granted = [grant["source"] for service in files["services"].values() for grant in service["secrets"]]
    assert set(granted) == set(files["secrets"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_only_the_secrets_that_it_uses(compose: Compose, service: str) -> None:
    files = compose(*FILES, **S3)
    given = files["services"][service]
    granted = {grant["source"] for grant in given["secrets"]}
    named = {Path(v).name for v in given["environment"].values() if str(v).startswith("/run/secrets/")}
    if service == "postgres":
        named |= set(re.findall(r"/run/secrets/(\w+)", (DOCKER / "config" / "databases.sql").read_text()))
    assert granted == named
    assert granted <= set(files["secrets"])
    user, group = given["user"].split(":")
    for grant in given["secrets"]:
        assert (grant["uid"], grant["gid"], grant["mode"]) == (user, group, 0o400), grant


def test_no_secret_is_in_any_service(compose: Compose, env: dict[str, str]) -> None:
    services = list(strings(compose(*FILES, **S3, HF_TOKEN="hub-secret", S3_SECRET_ACCESS_KEY="s3-secret")["services"]))
    hidden = {value for name, value in env.items() if name != "MLFLOW_AUTH_ADMIN_USERNAME"} | {
        "hub-secret",
        "s3-secret",
    }
    assert len(hidden) == 11
    assert [text for text in services if any(value in text for value in hidden)] == []


@pytest.mark.parametrize("name", FILES)
def test_secrets_are_files_or_required_variables(name: str) -> None:
    for service, given in yaml.safe_load((DOCKER / name).read_text())["services"].items():
        for key, value in given.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|PASS|KEY", key):
                assert re.match(r"/run/secrets/\w+$|\$\{\w+:\?", value), f"{service}: {key}"


def test_ports_are_published_on_loopback_only(compose: Compose) -> None:
    published = {name: given.get("ports", []) for name, given in compose()["services"].items()}
    assert published == {
        "postgres": [],
        "mlflow": ["127.0.0.1:5000:5000"],
        "head": ["127.0.0.1:8265:8265"],
        "worker": [],
        "worker-gpu": [],
    }
    assert all("network_mode" not in given for given in compose()["services"].values())


@pytest.mark.parametrize("service", SERVICES)
def test_hardening(compose: Compose, service: str) -> None:
    given = compose()["services"][service]
    assert int(given["user"].split(":")[0]) > 0
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "pid", "ipc", "devices"} & set(given) == set()
    assert given["restart"] == "unless-stopped"
    assert {"cpus", "memory"} == set(given["deploy"]["resources"]["limits"])
    assert given["logging"]["options"].keys() == {"max-size", "max-file"}
    assert re.fullmatch(r"evosearch:\w+|postgres:[\w.-]+@sha256:[0-9a-f]{64}", given["image"])
    assert not given["image"].endswith(":latest")
    assert "shm_size" in given or service == "mlflow"


@pytest.mark.parametrize("service", SERVICES)
def test_each_has_a_health_check(compose: Compose, service: str, flags: Callable[..., set[str]]) -> None:
    given = compose()["services"][service]
    how, program, *rest = given["healthcheck"]["test"]
    assert how == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(given["healthcheck"])
    if program == "python":
        assert rest[0] == "-c"
        compile(rest[1], "<healthcheck>", "exec")
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/", rest[1])
        own = options(given["command"])
        assert port in (own.get("--port"), own.get("--dashboard-agent-listen-port"))
    else:
        assert set(options(rest)) <= flags(program)


def test_services_wait_for_their_dependencies(compose: Compose) -> None:
    services = compose()["services"]
    needs = {name: set(given.get("depends_on", {})) for name, given in services.items()}
    assert needs == {
        "postgres": set(),
        "mlflow": {"postgres"},
        "head": {"postgres", "mlflow"},
        "worker": {"head"},
        "worker-gpu": {"head"},
    }
    conditions = [entry["condition"] for given in services.values() for entry in given.get("depends_on", {}).values()]
    assert set(conditions) == {"service_healthy"}


def test_networks_volumes_and_mounted_files_exist(compose: Compose) -> None:
    files = compose()
    for name, given in files["services"].items():
        assert set(given["networks"]) <= set(files["networks"])
        for volume in given["volumes"]:
            source = volume.split(":")[0]
            exists = (DOCKER / source).is_file() if source.startswith(".") else source in files["volumes"]
            assert exists, f"{name}: {volume}"
            assert not source.startswith(".") or volume.endswith(":ro")
    assert set(files["volumes"]) == {
        v.split(":")[0] for s in files["services"].values() for v in s["volumes"] if v[0] != "."
    }


def test_a_worker_can_access_neither_the_database_nor_its_passwords(compose: Compose) -> None:
    files = compose(*FILES, **S3)
    assert files["networks"]["database"] == {"internal": True}
    for name in ("worker", "worker-gpu"):
        worker = files["services"][name]
        assert worker["networks"] == ["cluster"]
        assert {grant["source"] for grant in worker["secrets"]} == {"ray_auth_token", "hub_token"}
        assert not {key for key in worker["environment"] if key.startswith(("MLFLOW", "PG"))}


def test_built_images_are_the_dockerfiles_targets(compose: Compose, stages: dict[str, Any]) -> None:
    for name, given in compose()["services"].items():
        if "build" in given:
            assert (DOCKER / given["build"]["context"]).resolve() == ROOT
            assert (ROOT / given["build"]["dockerfile"]).is_file()
            target = given["build"]["target"]
            assert target in stages
            assert given["image"] == f"evosearch:{target}"
            assert (target == "cuda") == (name == "worker-gpu")


def test_gpus_are_reserved_on_demand_and_cpu_workers_are_the_default(compose: Compose) -> None:
    services = compose()["services"]
    assert [name for name, given in services.items() if "profiles" in given] == ["worker-gpu"]
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["worker"]["deploy"]["replicas"] == "2"
    assert compose(EVOSEARCH_WORKERS="0")["services"]["worker"]["deploy"]["replicas"] == "0"


def test_rays_options_exist(
    compose: Compose, flags: Callable[..., set[str]], one: Callable[[str, str], dict[str, Any]]
) -> None:
    cluster = one("RayCluster", "evosearch")["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= flags("ray", "start")
    services = compose()["services"]
    for name in ("head", "worker", "worker-gpu"):
        command = services[name]["command"]
        assert command[:2] == ["ray", "start"]
        assert set(options(command)) <= flags("ray", "start"), name
        assert {"--block", "--disable-usage-stats"} <= set(options(command))
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"
    head, worker = options(services["head"]["command"]), options(services["worker"]["command"])
    assert json.loads(head["--resources"]) == {QUEUE: 1}
    assert head["--num-cpus"] == "0"
    assert worker["--address"] == f"head:{head['--port']}"
    assert services["worker-gpu"]["command"] == services["worker"]["command"]


def test_every_node_has_the_environment_and_volumes_of_jobs(compose: Compose, stages: dict[str, Any]) -> None:
    services = compose()["services"]
    baked = dict(part.split("=", 1) for step, rest in stages["base"] if step == "ENV" for part in rest.split())
    everywhere = {"EVOSEARCH_PYTHON", "EVOSEARCH_RUNS", "EVOSEARCH_CACHE", "EVOSEARCH_DATA", "HF_HOME", "RAY_AUTH_MODE"}
    for name in ("head", "worker", "worker-gpu"):
        given = services[name]["environment"]
        assert {key: given[key] for key in everywhere} == {key: baked[key] for key in everywhere}
        assert f"cache:{given['EVOSEARCH_CACHE']}" in services[name]["volumes"]
        assert Path(given["HF_HOME"]).is_relative_to(given["EVOSEARCH_CACHE"]), "in the shared volume"
    head = services["head"]["environment"]
    assert {name: int(head[name]) >= 60 for name in SETTINGS} == dict.fromkeys(SETTINGS, True)
    assert head["PGPASSFILE"] == "/run/secrets/evosearch_pgpass"
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_ACCOUNT_FILE"} <= set(head)
    assert not {"MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_PASSWORD_FILE"} & set(head), "inherited by jobs"
    assert head["MLFLOW_ACCOUNT"] == services["mlflow"]["environment"]["MLFLOW_TRACKING_USERNAME"]
    assert {f"runs:{head['EVOSEARCH_RUNS']}", f"user:{head['EVOSEARCH_DATA']}"} <= set(services["head"]["volumes"])


def test_mlflow_has_accounts_allowed_hosts_and_one_process(compose: Compose) -> None:
    given = compose()["services"]["mlflow"]  # test_docker_native.py starts it with these options
    assert given["command"][:3] == ["mlflow-accounts", "mlflow", "server"]
    own = options(given["command"])
    assert own["--app-name"] == "basic-auth"
    assert own["--workers"] == "1"
    assert own["--allowed-hosts"].split(",") == ["mlflow:5000", "localhost:*", "127.0.0.1:*"]
    assert given["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert own["--artifacts-destination"] in [volume.split(":")[1] for volume in given["volumes"]]


def test_mlflow_has_the_options_of_evosearch_cluster(compose: Compose) -> None:
    files = ("devcluster/mlflow_server.py", "tracking/server.py")
    natively = "".join((ROOT / "evosearch" / file).read_text() for file in files)
    assert set(options(compose()["services"]["mlflow"]["command"])) == set(re.findall(r'"(--[a-z-]+)"', natively))


def test_s3_changes_only_the_artifacts_destination(compose: Compose) -> None:
    here = options(compose()["services"]["mlflow"]["command"])
    there = options(compose("compose.yaml", "compose.s3.yaml", **S3)["services"]["mlflow"]["command"])
    assert {key for key in here | there if here.get(key) != there.get(key)} == {"--artifacts-destination"}
    assert there["--artifacts-destination"] == "s3://bucket/prefix"


def test_urls_use_databases_and_owners_that_are_created(compose: Compose, env: dict[str, str]) -> None:
    made = dict(re.findall(r"CREATE DATABASE (\w+) OWNER (\w+);", (DOCKER / "config" / "databases.sql").read_text()))
    mlflow = options(compose()["services"]["mlflow"]["command"])["--backend-store-uri"]
    accounts = re.search(r"database_uri = (\S+)", (DOCKER / "config" / "mlflow_auth.ini").read_text())
    assert accounts
    for url in (mlflow, accounts[1]):
        found = re.fullmatch(r"postgresql\+psycopg://(\w+)@postgres:5432/(\w+)", url)
        assert found, url
        assert made[found[2]] == found[1]
    for name, owner in {"EVOSEARCH": "evosearch", "MLFLOW": "mlflow"}.items():
        host, port, database, user, password = env[f"{name}_PGPASS"].split(":")
        assert (host, port, user, password) == ("postgres", "5432", owner, env[f"{name}_DB_PASSWORD"])
        assert database in (*made, "*")
