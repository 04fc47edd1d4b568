"""The scripts of docker/: secrets are random, private and never overwritten."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
PYTHON, POSTGRES = "python:3.11-slim-bookworm", "postgres:17-bookworm"
SHELL = ("make-env", "with-secrets", "k8s/make-secrets", "k8s/make-api-policy")


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]} | env)


def values(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_are_valid_and_executable(name: str) -> None:
    script = DOCKER / name
    assert script.read_text().startswith("#!/bin/sh\n")
    assert os.access(script, os.X_OK)
    checked = run("sh", "-n", script)
    assert (checked.returncode, checked.stderr) == (0, "")


# --- make-env ---


def test_make_env_writes_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    made = run(DOCKER / "make-env", tmp_path / ".env")
    assert made.returncode == 0
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert made.stdout == ""
    assert not any(value in made.stderr for value in values(tmp_path / ".env").values() if len(value) > 8)


def test_make_env_creates_new_values_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(DOCKER / "make-env", tmp_path / name)
    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] == two[name]] == ["MLFLOW_AUTH_ADMIN_USERNAME"]
    secrets = [value.rsplit(":", 1)[-1] for name, value in one.items() if name != "MLFLOW_AUTH_ADMIN_USERNAME"]
    assert all(len(value) == 48 and int(value, 16) for value in secrets)
    assert len(set(secrets)) == len(secrets) - 2, "two passwords appear twice, the second time for libpq"


def test_make_env_keeps_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RAY_AUTH_TOKEN=old\n")
    again = run(DOCKER / "make-env", tmp_path / ".env")
    assert again.returncode == 2
    assert f"{tmp_path}/.env exists and is not changed" in again.stderr
    assert (tmp_path / ".env").read_text() == "RAY_AUTH_TOKEN=old\n"


def test_make_env_names_the_file_that_it_cannot_write(tmp_path: Path) -> None:
    failed = run(DOCKER / "make-env", tmp_path / "none" / ".env")
    assert failed.returncode == 2
    assert f"cannot write {tmp_path}/none/.env" in failed.stderr


def test_a_shell_can_source_the_file(tmp_path: Path) -> None:
    run(DOCKER / "make-env", tmp_path / ".env")
    read = run("sh", "-euc", f'. {tmp_path}/.env; printf %s "$MLFLOW_PGPASS"')
    assert read.stdout == values(tmp_path / ".env")["MLFLOW_PGPASS"]


def test_the_file_is_not_under_version_control(tmp_path: Path) -> None:
    run("git", "-C", tmp_path, "init", "--quiet")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / ".gitignore").write_text((DOCKER / ".gitignore").read_text())
    assert run("git", "-C", tmp_path, "check-ignore", "docker/.env").returncode == 0


# --- with-secrets ---


def test_a_secrets_file_becomes_an_environment_variable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a b'c\"$d\n")
    shown = run(
        *(DOCKER / "with-secrets", sys.executable, "-c", "import os; print(os.environ['MLFLOW_TRACKING_PASSWORD'])"),
        MLFLOW_TRACKING_PASSWORD_FILE=str(tmp_path / "secret"),
    )
    assert shown.stdout == "a b'c\"$d\n"


def test_other_variables_that_end_in_file_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    shown = run(DOCKER / "with-secrets", "env", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
    assert "SSL_CERT=" not in shown.stdout
    assert f"SSL_CERT_FILE={tmp_path}/ca.pem" in shown.stdout


def test_a_missing_or_empty_secret_prevents_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, message in (("none", "cannot read"), ("empty", "is empty")):
        stopped = run(DOCKER / "with-secrets", "echo", "started", MLFLOW_AUTH_ADMIN_PASSWORD_FILE=str(tmp_path / name))
        assert (stopped.returncode, stopped.stdout) == (2, "")
        assert "MLFLOW_AUTH_ADMIN_PASSWORD_FILE: " in stopped.stderr
        assert message in stopped.stderr
    assert run(DOCKER / "with-secrets").returncode == 2


def test_a_heads_account_becomes_a_private_file_and_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.utils.credentials import read_mlflow_creds

    (tmp_path / "secret").write_text("c0ffee\n")
    account = {"MLFLOW_ACCOUNT": "evosearch", "MLFLOW_ACCOUNT_FILE": str(tmp_path / "secret"), "HOME": str(tmp_path)}
    assert "c0ffee" not in run(DOCKER / "with-secrets", "env", **account).stdout
    assert (tmp_path / ".mlflow" / "credentials").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert tuple(read_mlflow_creds()) == ("evosearch", "c0ffee")
    missing = run(DOCKER / "with-secrets", "env", **account | {"MLFLOW_ACCOUNT_FILE": str(tmp_path / "none")})
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "MLFLOW_ACCOUNT_FILE: cannot read" in missing.stderr


def test_the_commands_exit_code_is_returned() -> None:
    assert run(DOCKER / "with-secrets", "sh", "-c", "exit 3").returncode == 3


# --- mlflow-accounts ---


def test_mlflow_accounts_names_an_unset_variable() -> None:
    script = DOCKER / "mlflow-accounts"
    assert os.access(script, os.X_OK)
    stopped = run(sys.executable, script, "true", MLFLOW_AUTH_ADMIN_USERNAME="admin")
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("mlflow-accounts: MLFLOW_AUTH_ADMIN_PASSWORD is not set.")


# --- pin-images ---


class Registry:
    """A registry of images with anonymous tokens, by the distribution API.

    Attributes:
        manifests: Name and tag → manifest.
        said: Digest that HEAD states instead of the right one.
        asked: Requests.
    """

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.said: str | None = None
        self.asked: list[str] = []
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                if self.path.startswith("/token?"):
                    registry.asked.append(f"token {self.path.partition('?')[2]}")
                    return self._send(200, b'{"token": "t0ken"}')
                return self._answer()

            def log_message(self, *args: Any) -> None: ...

            def _answer(self) -> None:
                _, _, name, reference = re.fullmatch(r"/(v2)/((.+)/manifests/(.+))", self.path).groups()  # type: ignore[union-attr]
                if self.headers["Authorization"] != "Bearer t0ken":
                    scope = f'realm="{registry.url}/token",service="registry",scope="repository:{name}:pull"'
                    return self._send(401, b"", {"WWW-Authenticate": f"Bearer {scope}"})
                assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
                registry.asked.append(f"{self.command} {name} {reference}")
                found = {tag: data for (image, tag), data in registry.manifests.items() if image == name}
                found |= {digest(data): data for data in found.values()}
                found |= {registry.said: next(iter(found.values()), b"")} if registry.said else {}
                if reference not in found:
                    return self._send(404, b"")
                data = found[reference]
                return self._send(200, data, {"Docker-Content-Digest": registry.said or digest(data)})

            def _send(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(code)
                for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with the two base images."""
    made = Registry()
    made.manifests = {("library/python", PYTHON.split(":")[1]): b"{1}", ("library/postgres", "17-bookworm"): b"{2}"}
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of docker/ without digests."""
    shutil.copytree(DOCKER, tmp_path / "docker")
    for file in (tmp_path / "docker").rglob("*"):
        if file.is_file() and (file.name == "Dockerfile" or file.suffix == ".yaml"):
            file.write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", file.read_text()))
    return tmp_path / "docker"


def pin(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, folder / "pin-images", *options)


def test_every_image_of_others_has_a_digest() -> None:
    checked = pin(DOCKER, "--check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    text = "".join((DOCKER / name).read_text() for name in ("Dockerfile", "compose.yaml", "k8s/postgres.yaml"))
    found = set(re.findall(r"\b(?:python|postgres):[\w.-]+-bookworm(?:@sha256:[0-9a-f]{64})?", text))
    assert {image.partition("@")[0] for image in found} == {PYTHON, POSTGRES}
    assert len(found) == 2, "the same digest in all files"


def test_images_without_a_digest_are_named(copied: Path) -> None:
    checked = pin(copied, "--check")
    assert checked.returncode == 1
    named = [line.partition(" has no digest. Run docker/pin-images") for line in checked.stderr.splitlines()]
    places = [re.sub(r":\d+:", "", text) for text, said, _ in named if said]
    assert places == [
        f"Dockerfile {PYTHON}",
        f"compose.yaml {PYTHON}",
        f"compose.yaml {POSTGRES}",
        f"k8s/postgres.yaml {POSTGRES}",
    ]


def test_pin_images_writes_the_registrys_digests(copied: Path, registry: Registry) -> None:
    before = {file: file.read_text() for file in copied.rglob("*") if file.is_file() and file.suffix == ".yaml"}
    mode = (copied / "compose.yaml").stat().st_mode
    made = pin(copied, "--registry", registry.url)
    assert made.returncode == 0, made.stderr
    python, postgres = f"{PYTHON}@{digest(b'{1}')}", f"{POSTGRES}@{digest(b'{2}')}"
    assert made.stdout.splitlines() == [postgres, python]
    assert f"ARG PYTHON_IMAGE={python}\n" in (copied / "Dockerfile").read_text()
    assert f"${{POSTGRES_IMAGE:-{postgres}}}" in (copied / "compose.yaml").read_text()
    assert f"image: {postgres}\n" in (copied / "k8s" / "postgres.yaml").read_text()
    assert pin(copied, "--check").returncode == 0
    changed = {file for file, text in before.items() if file.read_text() != text}
    assert changed == {copied / "compose.yaml", copied / "k8s" / "postgres.yaml"}, "own images stay as they are"
    assert (copied / "compose.yaml").stat().st_mode == mode
    scopes = [line for line in registry.asked if line.startswith("token ")]
    assert scopes == [
        f"token service=registry&scope=repository%3Alibrary%2F{name}%3Apull" for name in ("postgres", "python")
    ]


def test_pin_images_follows_a_tag_that_has_moved(copied: Path, registry: Registry) -> None:
    pin(copied, "--registry", registry.url)
    registry.manifests["library/postgres", "17-bookworm"] = b"{3}"
    assert pin(copied, "--registry", registry.url).returncode == 0
    text = (copied / "compose.yaml").read_text()
    assert f"{POSTGRES}@{digest(b'{3}')}" in text
    assert digest(b"{2}") not in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda registry: registry.manifests.popitem(), r"404 Not Found\. Does postgres:17-bookworm exist\?"),
        (lambda registry: setattr(registry, "said", "latest"), r"gave no digest for postgres:17-bookworm: 'latest'"),
        (
            lambda registry: setattr(registry, "said", f"sha256:{1:064d}"),
            r"gave another manifest of postgres:17-bookworm",
        ),
        (lambda registry: setattr(registry, "url", "http://127.0.0.1:1"), r"cannot be asked for postgres:17-bookworm"),
    ],
)
def test_pin_images_changes_nothing_without_a_valid_digest(
    copied: Path, registry: Registry, spoil: Callable[[Registry], object], said: str
) -> None:
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    spoil(registry)
    failed = pin(copied, "--registry", registry.url)
    assert failed.returncode == 2
    assert re.search(rf"^pin-images: .*{said}", failed.stderr), failed.stderr
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before


# --- make-secrets ---


@pytest.fixture
def kubectl(tmp_path: Path) -> Path:
    """A fake kubectl that records its arguments and input."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nexec cat >{tmp_path}/input\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def test_make_secrets_passes_values_only_on_kubectls_standard_input(kubectl: Path) -> None:
    made = run(DOCKER / "k8s" / "make-secrets", "night", PATH=f"{kubectl}/bin:{os.environ['PATH']}")
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert (kubectl / "arguments").read_text() == "create --namespace night -f -\n", "create keeps existing secrets"
    found = list(yaml.safe_load_all((kubectl / "input").read_text()))
    assert {secret["metadata"]["name"] for secret in found} == {
        "evosearch-postgres",
        "evosearch-mlflow",
        "evosearch-ray",
    }
    values = {key: value for secret in found for key, value in secret["stringData"].items()}
    derived = {key: values.pop(key) for key in ("evosearch_pgpass", "mlflow_pgpass", "tracking_credentials")}
    assert len(set(values.values())) == len(values) == 7
    assert all(len(value) == 48 and int(value, 16) for value in values.values())
    assert derived["evosearch_pgpass"] == f"postgres:5432:evosearch:evosearch:{values['evosearch_password']}"
    assert derived["mlflow_pgpass"] == f"postgres:5432:*:mlflow:{values['mlflow_password']}"


def test_mlflow_reads_the_account_that_make_secrets_writes(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(DOCKER / "k8s" / "make-secrets", PATH=f"{kubectl}/bin:{os.environ['PATH']}")
    secrets = {s["metadata"]["name"]: s["stringData"] for s in yaml.safe_load_all((kubectl / "input").read_text())}
    given = secrets["evosearch-mlflow"]
    (kubectl / ".mlflow").mkdir()
    (kubectl / ".mlflow" / "credentials").write_text(given["tracking_credentials"])
    monkeypatch.setenv("HOME", str(kubectl))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    from mlflow.utils.credentials import read_mlflow_creds

    assert read_mlflow_creds() == ("evosearch", given["tracking_password"])


def test_make_secrets_fails_if_kubectl_fails(kubectl: Path) -> None:
    (kubectl / "bin" / "kubectl").write_text('#!/bin/sh\necho "AlreadyExists" >&2\nexit 1\n')
    made = run(DOCKER / "k8s" / "make-secrets", PATH=f"{kubectl}/bin:{os.environ['PATH']}")
    assert made.returncode == 1
    assert "AlreadyExists" in made.stderr


def test_make_secrets_reports_a_missing_kubectl(tmp_path: Path) -> None:
    for tool in ("od", "tr", "cat", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    made = run("/bin/sh", DOCKER / "k8s" / "make-secrets", PATH=str(tmp_path))
    assert (made.returncode, made.stderr) == (2, "make-secrets: kubectl was not found on PATH.\n")


# --- make-api-policy ---


@pytest.fixture
def api_server(kubectl: Path) -> Path:
    """A fake kubectl for a cluster with one service and two API servers."""
    (kubectl / "bin" / "kubectl").write_text(f"""#!/bin/sh
case "$*" in
  "get service"*) echo "10.96.0.1 443"; echo "fd00::1 443" ;;
  "get endpointslices"*) echo "192.168.10.2 6443"; echo "192.168.10.3 6443" ;;
  *) echo "$@" >{kubectl}/arguments; exec cat >{kubectl}/input ;;
esac
""")
    return kubectl


def test_make_api_policy_allows_exactly_the_api_servers_addresses(api_server: Path) -> None:
    made = run(DOCKER / "k8s" / "make-api-policy", "night", PATH=f"{api_server}/bin:{os.environ['PATH']}")
    assert (made.returncode, made.stderr) == (0, "")
    assert (api_server / "arguments").read_text() == "apply --namespace night -f -\n"
    policy = yaml.safe_load((api_server / "input").read_text())
    kubernetes_validate.validate(policy, "1.37", strict=True)
    assert policy["spec"]["policyTypes"] == ["Egress"]
    assert policy["spec"]["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    allowed = [(rule["to"], rule["ports"]) for rule in policy["spec"]["egress"]]
    assert [(to[0]["ipBlock"]["cidr"], ports[0]["port"]) for to, ports in allowed] == [
        ("10.96.0.1/32", 443),
        ("fd00::1/128", 443),
        ("192.168.10.2/32", 6443),
        ("192.168.10.3/32", 6443),
    ]
    assert all(len(to) == len(ports) == 1 for to, ports in allowed)


def test_make_api_policy_applies_nothing_without_addresses(api_server: Path) -> None:
    fake = api_server / "bin" / "kubectl"
    fake.write_text(fake.read_text().replace('echo "192.168.10.2 6443"; echo "192.168.10.3 6443"', ":"))
    made = run(DOCKER / "k8s" / "make-api-policy", PATH=f"{api_server}/bin:{os.environ['PATH']}")
    assert made.returncode == 2
    assert "has no addresses" in made.stderr
    assert not (api_server / "input").exists()


API_SERVER = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "discovery.k8s.io",
                "versions": [{"groupVersion": "discovery.k8s.io/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "discovery.k8s.io/v1", "version": "v1"},
            }
        ],
    },
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {
                "name": "services",
                "singularName": "service",
                "namespaced": True,
                "kind": "Service",
                "verbs": ["get", "list"],
            }
        ],
    },
    "/apis/discovery.k8s.io/v1": {
        "kind": "APIResourceList",
        "groupVersion": "discovery.k8s.io/v1",
        "resources": [
            {
                "name": "endpointslices",
                "singularName": "endpointslice",
                "namespaced": True,
                "kind": "EndpointSlice",
                "verbs": ["get", "list"],
            }
        ],
    },
    "/api/v1/namespaces/default/services/kubernetes": {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIPs": ["10.96.0.1"]},
    },
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices": {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSliceList",
        "metadata": {},
        "items": [
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "kubernetes", "namespace": "default"},
                "addressType": "IPv4",
                "ports": [{"port": 6443}],
                "endpoints": [{"addresses": ["192.168.10.2"]}, {"addresses": ["192.168.10.3"]}],
            }
        ],
    },
}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_evaluates_make_api_policys_templates(kubectl: Path) -> None:
    """The real kubectl asks a small API server; only `apply` is recorded."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = API_SERVER.get(self.path.partition("?")[0])
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found or {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    real = shutil.which("kubectl")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (kubectl / "bin" / "kubectl").write_text(f"""#!/bin/sh
[ "$1" = apply ] && exec cat >{kubectl}/input
exec {real} --server http://127.0.0.1:{server.server_port} "$@"
""")
        made = run(
            DOCKER / "k8s" / "make-api-policy",
            PATH=f"{kubectl}/bin:{os.environ['PATH']}",
            HOME=str(kubectl),
            KUBECONFIG=os.devnull,
        )
        server.shutdown()
    assert (made.returncode, made.stderr) == (0, "")
    rules = yaml.safe_load((kubectl / "input").read_text())["spec"]["egress"]
    assert [(r["to"][0]["ipBlock"]["cidr"], r["ports"][0]["port"]) for r in rules] == [
        ("10.96.0.1/32", 443),
        ("192.168.10.2/32", 6443),
        ("192.168.10.3/32", 6443),
    ]
