"""The Dockerfile, parsed without an engine: installed packages, user, build context."""

import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from evosearch.environment import TELEMETRY_OFF

ROOT = Path(__file__).parents[2]
TARGETS = ("cuda", "cpu")
Stages = dict[str, list[tuple[str, str]]]


def steps(stages: Stages, target: str) -> list[tuple[str, str]]:
    """Return all steps of a target, starting with those of its base."""
    return stages["base"] + stages[target]


def variables(stages: Stages) -> dict[str, str]:
    return dict(part.split("=", 1) for step, rest in stages["base"] if step == "ENV" for part in rest.split())


def ignored(path: str) -> bool:
    """Return whether docker/Dockerfile.dockerignore excludes a path: the last matching pattern decides."""
    out = False
    lines = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        pattern = line.removeprefix("!")
        parents = [path, *map(str, Path(path).parents)][:-1]
        anywhere = pattern.removeprefix("**/") if pattern.startswith("**/") else None
        if any(fnmatchcase(Path(entry).name, anywhere) if anywhere else _fits(entry, pattern) for entry in parents):
            out = not line.startswith("!")
    return out


def _fits(path: str, pattern: str) -> bool:
    """Match like Go's filepath.Match, where `*` stays within one folder."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def test_two_targets_share_a_base_and_cpu_is_the_default(stages: Stages) -> None:
    assert list(stages) == ["base", *TARGETS], "`docker build` makes the last stage by default"
    assert [stages[target][0] for target in TARGETS] == [("FROM", f"base AS {target}") for target in TARGETS]
    assert stages["base"][0] == ("FROM", "${PYTHON_IMAGE} AS base")
    (first,) = re.findall(r"^(?!#)(.+)\nFROM", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)[:1]
    assert first.startswith("ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:")
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert {step for name in stages for step, _ in stages[name]} <= known


def test_the_targets_differ_only_in_torch(stages: Stages) -> None:
    def rest(target: str) -> list[tuple[str, str]]:
        lines = [s for s in stages[target][1:] if s[0] != "ARG" and "locked torch" not in s[1]]
        return [(step, text.replace("base server cuda", "base server")) for step, text in lines]

    assert rest("cpu") == rest("cuda")


@pytest.mark.parametrize("target", TARGETS)
def test_copied_files_exist_and_are_in_the_build_context(stages: Stages, target: str) -> None:
    sources = [name for step, rest in steps(stages, target) if step == "COPY" for name in rest.split()[:-1]]
    assert {"evosearch", "recipes", "evals", "scripts/lock.txt", "scripts/locked", "docker/with-secrets"} <= set(
        sources
    )
    for name in sources:
        assert (ROOT / name).exists(), name
        assert not ignored(name), name


@pytest.mark.parametrize(
    "path",
    [
        "docker/.env",
        ".git/config",
        ".venv/bin/python",
        "models/smollm2/model.safetensors",
        "runs/night/ledger.db",
        "tests/conftest.py",
        "evals/sentences/data/en.jsonl",
        "evosearch/cli/__pycache__/main.pyc",
        "recipes/.env",
    ],
)
def test_other_files_are_not_in_the_build_context(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_are_the_lock_with_hashes(stages: Stages, target: str) -> None:
    *locked, own = [rest for step, rest in stages[target] if step == "RUN"]
    sets = []
    for command in locked:
        found = re.fullmatch(r"scripts/locked ([a-z -]+) > (\w+\.txt) +&& pip install (.+) -r (\w+\.txt)", command)
        assert found, command
        assert found[2] == found[4]
        assert {"--no-deps", "--require-hashes"} <= set(found[3].split())
        sets.append(found[1])
    own_sets = ["torch", "base server cuda"] if target == "cuda" else ["torch-cpu", "base server"]
    assert sets == ["build", *own_sets]
    assert own == "pip install --no-deps --no-build-isolation . && pip check", "pip check: nothing is missing"


def test_the_cpu_build_comes_from_its_index_and_the_cuda_build_from_the_registry(stages: Stages) -> None:
    torch = {target: next(rest for _, rest in stages[target] if "locked torch" in rest) for target in TARGETS}
    assert '--index-url "$TORCH_CPU_INDEX"' in torch["cpu"]
    assert "index" not in torch["cuda"]
    assert [rest.rsplit("/", 1)[1] for step, rest in stages["cpu"] if step == "ARG"] == ["cpu"]


def test_the_project_has_the_server_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"mlflow", "boto3"} == {re.match(r"[a-z0-9]+", need)[0] for need in extras["server"]}  # type: ignore[index]


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_an_unprivileged_numeric_user(stages: Stages, target: str) -> None:
    assert stages[target][-1] == ("USER", "10001:10001"), "last, so that installed files belong to root"
    assert [step for step, _ in steps(stages, target)].count("USER") == 1
    made = next(rest for step, rest in stages["base"] if "useradd" in rest)
    assert "--uid 10001" in made
    assert "chown -R 10001:10001 /data /artifacts" in made


def test_fused_kernels_find_a_compiler_at_run_time(stages: Stages) -> None:
    install = next(rest for step, rest in stages["base"] if "apt-get install" in rest)
    assert {"gcc", "g++", "libc6-dev", "tini"} <= set(install.split())
    assert "rm -rf /var/lib/apt/lists/*" in install
    assert {"CC": "gcc", "CXX": "g++"}.items() <= variables(stages).items()


def test_the_entrypoint_forwards_signals_and_sets_secrets(stages: Stages) -> None:
    forms = {step: json.loads(rest) for step, rest in stages["base"] if step in ("ENTRYPOINT", "CMD")}
    assert forms["ENTRYPOINT"] == ["tini", "--", "with-secrets"]
    assert forms["CMD"][:2] == ["evosearch", "run"]
    assert (ROOT / forms["CMD"][2].removeprefix("/opt/evosearch/")).exists()


@pytest.mark.parametrize("target", TARGETS)
def test_no_container_leaves_an_anonymous_volume(stages: Stages, target: str) -> None:
    assert "VOLUME" not in [step for step, _ in steps(stages, target)], "compose.yaml mounts only subfolders of /data"


def test_files_from_the_hub_are_stored_in_the_cache(stages: Stages) -> None:
    found = variables(stages)
    assert found["HF_HOME"] == f"{found['EVOSEARCH_CACHE']}/huggingface"
    code = "from huggingface_hub import constants; from datasets import config; "
    code += "print(constants.HF_HUB_CACHE, config.HF_CACHE_HOME)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    caches = subprocess.check_output([sys.executable, "-c", code], env=environment | found, text=True, timeout=120)
    assert all(Path(cache).is_relative_to(found["HF_HOME"]) for cache in caches.split())


def test_the_package_reads_all_variables_of_the_environment(stages: Stages) -> None:
    found = variables(stages)
    assert TELEMETRY_OFF.items() <= found.items()
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["EVOSEARCH_PYTHON"] == "/usr/local/bin/python"
    source = "".join(file.read_text() for file in (ROOT / "evosearch").rglob("*.py"))
    named = {name for name in found if name.startswith("EVOSEARCH_")}
    assert {"EVOSEARCH_RUNS", "EVOSEARCH_CACHE", "EVOSEARCH_DATA"} < named
    assert {name for name in named if name not in source} == set(), "not read by the package"


def test_no_secret_is_in_a_layer(stages: Stages) -> None:
    for name, lines in stages.items():
        for step, rest in lines:
            assert not re.search(r"(PASSWORD|TOKEN|SECRET|KEY)\w*=", rest), f"{name}: {step} {rest}"
            assert step != "ARG" or rest.startswith("TORCH_CPU_INDEX=")
            assert step != "COPY" or ".env" not in rest
