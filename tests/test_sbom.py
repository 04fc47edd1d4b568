"""scripts/sbom: valid CycloneDX 1.6, complete, reproducible."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EPOCH = {"SOURCE_DATE_EPOCH": "1796000000"}


def sbom(*arguments: str) -> str:
    command = [sys.executable, ROOT / "scripts" / "sbom", *arguments]
    done = subprocess.run(command, env=os.environ | EPOCH, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def text() -> str:
    return sbom()


@pytest.fixture(scope="module")
def bill(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_it_matches_the_schema(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


@pytest.mark.parametrize("change", [{"components": [{"name": "x"}]}, {"bomFormat": "SPDX"}, {"component": []}])
def test_the_schema_refuses_errors(bill: dict[str, Any], change: dict[str, Any]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill | change)) is not None


def test_it_has_every_installed_package(bill: dict[str, Any]) -> None:
    installed = {(canonicalize_name(found.name), found.version) for found in distributions()}
    subject = bill["metadata"]["component"]
    listed = {(part["name"], part["version"]) for part in (subject, *bill["components"])}
    assert (subject["name"], subject["type"]) == ("evosearch", "application")
    assert listed == installed
    (torch,) = [part for part in bill["components"] if part["name"] == "torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{version('torch').replace('+', '%2B')}"
    assert torch["licenses"]


def test_dependencies_are_those_of_the_metadata(bill: dict[str, Any]) -> None:
    edges = {entry["ref"]: set(entry.get("dependsOn", [])) for entry in bill["dependencies"]}
    refs = {part["bom-ref"] for part in bill["components"]}
    assert edges.keys() == refs | {bill["metadata"]["component"]["bom-ref"]}
    own = edges[f"evosearch=={version('evosearch')}"]
    assert {f"{name}=={version(name)}" for name in ("torch", "ray", "mlflow", "lm_eval")} - own == {
        f"lm_eval=={version('lm_eval')}"
    }
    assert f"lm-eval=={version('lm_eval')}" in own
    assert not any(ref.startswith("pytest==") for ref in own), "an extra is not needed at run time"


def test_it_says_what_is_not_locked(bill: dict[str, Any]) -> None:
    locked = {part["name"]: part["properties"][0] for part in bill["components"]}
    assert locked["torch"] == {"name": "evosearch:locked", "value": "true"}, "also its CPU build"
    assert locked["pip"]["value"] == "false", "it comes with the interpreter"


def test_packages_that_are_required_at_run_time(bill: dict[str, Any]) -> None:
    required = {part["name"] for part in json.loads(sbom("--requires"))["components"]}
    everything = {part["name"] for part in bill["components"]}
    assert {"torch", "ray", "mlflow", "accelerate"} <= required < everything, "accelerate: by lm-eval[hf]"
    assert {"pytest", "ruff", "pip", "mergekit"} & required == set()


def test_the_same_environment_gives_the_same_text(text: str) -> None:
    assert sbom() == text
