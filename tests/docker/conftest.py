"""Parsed files of docker/: the Dockerfile's stages, the merged Compose files, the manifests."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
Step = tuple[str, str]  # instruction, the rest
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def stages() -> dict[str, list[Step]]:
    """The Dockerfile's stages in order: name → steps, starting with FROM."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[Step]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        if found:  # not the base image's ARG before the first stage
            found[name].append((instruction, rest))
    return found


@pytest.fixture(scope="session")
def secrets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.env` file from make-env."""
    file = tmp_path_factory.mktemp("compose") / ".env"
    subprocess.run([DOCKER / "make-env", file], check=True, capture_output=True)
    return file


@pytest.fixture(scope="session")
def env(secrets_file: Path) -> dict[str, str]:
    """The variables in that file."""
    lines = [line for line in secrets_file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="session")
def compose(env: dict[str, str]) -> Callable[..., Manifest]:
    """Load Compose files, merged and with variables filled in: `compose("compose.yaml", "compose.s3.yaml", X="1")`."""

    def load(*names: str, unset: tuple[str, ...] = (), **more: str) -> Manifest:
        values = {key: value for key, value in (env | more).items() if key not in unset}
        merged: Manifest = {}
        for name in names or ("compose.yaml",):
            merged = _merge(merged, _fill(yaml.safe_load((DOCKER / name).read_text()), values))
        return merged

    return load


@pytest.fixture(scope="session")
def manifests() -> list[Manifest]:
    """Every object of docker/k8s, in file order."""
    files = sorted((DOCKER / "k8s").glob("*.yaml"))
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return [document for document in documents if "kind" in document]


@pytest.fixture(scope="session")
def one(manifests: list[Manifest]) -> Callable[[str, str], Manifest]:
    """Return the object with a kind and name: `one(kind, name)`."""

    def find(kind: str, name: str) -> Manifest:
        (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"].get("name") == name]
        return found

    return find


@pytest.fixture(scope="session")
def flags() -> Callable[..., set[str]]:
    """Options of a program, read from its --help and cached: `flags("ray", "start")`."""
    known: dict[tuple[str, ...], set[str]] = {}

    def read(*command: str) -> set[str]:
        if command not in known:
            program = Path(sys.executable).parent / command[0]
            start = [str(program)] if program.exists() else [command[0]]
            shown = subprocess.run(
                [*start, *command[1:], "--help"], capture_output=True, text=True, timeout=120, check=True
            )
            known[command] = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", shown.stdout))
        return known[command]

    return read


def _fill(value: Any, values: dict[str, str]) -> Any:
    """Fill in ${NAME}, ${NAME:-default} and ${NAME:?message} as Compose does.

    Raises:
        LookupError: A variable is not set and has no default; the message names it.
    """

    def one(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if set_to := values.get(name):
            return set_to
        if kind == "-":
            return str(rest)
        raise LookupError(f"{name} {rest or 'is not set'}")

    if isinstance(value, dict):
        return {key: _fill(entry, values) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, values) for entry in value]
    return VARIABLE.sub(one, value) if isinstance(value, str) else value


def _merge(below: Any, above: Any) -> Any:
    """Merge files as Compose does: mappings by key, commands replaced, other lists concatenated."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {
            key: value if key == "command" else _merge(below[key], value) if key in below else value
            for key, value in above.items()
        }
    return below + above if isinstance(below, list) and isinstance(above, list) else above


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep kubectl from using a cluster of this machine."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
