"""The scripts of docker/: secrets are random, private and never overwritten."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
SHELL = ("make-env", "with-secrets", "k8s/make-secrets")


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


def test_the_commands_exit_code_is_returned() -> None:
    assert run(DOCKER / "with-secrets", "sh", "-c", "exit 3").returncode == 3


# --- mlflow-accounts ---


def test_mlflow_accounts_names_an_unset_variable() -> None:
    script = DOCKER / "mlflow-accounts"
    assert os.access(script, os.X_OK)
    stopped = run(sys.executable, script, "true", MLFLOW_AUTH_ADMIN_USERNAME="admin")
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("mlflow-accounts: MLFLOW_AUTH_ADMIN_PASSWORD is not set.")


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
    drawn = [value for secret in found for value in secret["stringData"].values()]
    assert len(set(drawn)) == len(drawn) == 7
    assert all(len(value) == 48 and int(value, 16) for value in drawn)


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
