"""JSON Schemas: shipped files are current, accept the repository's own files, and refuse misspelled keys."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from evosearch.evaluation.suites.suite import Guard, SuiteFile
from evosearch.evaluation.suites.suite_task import DocumentCounts, DocumentSources, SplitTasks, TaskEntry
from evosearch.recipe.hops import Hop, Routing
from evosearch.recipe.provenance import (
    Provenance,
    RecordedInput,
    RecordedInterval,
    RecordedScore,
    RecordedSuite,
    RecordedTask,
)
from evosearch.recipe.schema import Input, Module, Recipe, Slice, Source
from evosearch.recipe.tokens import FromModel, Token, Tokenizer
from evosearch.search.optimizer_config import OptimizerConfig
from evosearch.spec import config
from evosearch.spec.json_schema import schemas, write_schemas
from evosearch.spec.stages import StageConfig, StagesFile

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "evosearch" / "schemas"


def errors(kind: str, data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schemas()[kind]).iter_errors(data)]


def test_the_shipped_files_are_current(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["recipe.schema.json", "spec.schema.json", "suite.schema.json"]
    stale = [name for name in names if (SHIPPED / name).read_text() != (tmp_path / name).read_text()]
    assert not stale, "run docs/generate.py"


@pytest.mark.parametrize("kind", ["spec", "recipe", "suite"])
def test_each_is_a_valid_schema(kind: str) -> None:
    Draft202012Validator.check_schema(schemas()[kind])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_specs_are_accepted(path: Path) -> None:
    assert errors("spec", yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", sorted((ROOT / "evals").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_suites_are_accepted(path: Path) -> None:
    assert errors("suite", yaml.safe_load(path.read_text())) == []


def test_a_recipe_is_accepted_and_a_hole_only_within_a_spec() -> None:
    models = [{"model": "./a", "parameters": {"weight": 0.5}}, {"model": "./b"}]
    recipe: dict[str, Any] = {"merge_method": "linear", "models": models}
    assert errors("recipe", recipe) == []
    searched = recipe | {"merge_method": {"choices": ["linear", "ties"]}}
    assert errors("recipe", searched)
    spec = {"name": "s", "recipe": searched, "optimizer": {}, "suite": "s.yaml", "budget": {"candidates": 1}}
    assert errors("spec", spec) == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("spec", {"name": "s", "recipe": {}, "optimizer": {}, "suite": "s.yaml", "budget": {"candidatos": 1}}),
        ("spec", {"name": "s", "recipe": {"modles": []}, "optimizer": {}, "suite": "s.yaml", "budget": {}}),
        ("recipe", {"merge_method": "linear", "models": [{"model": "./a", "wieght": 1.0}]}),
        ("suite", {"name": "s", "tasks": [{"task": "t", "metrik": "acc", "chance": 0.0}]}),
    ],
)
def test_a_misspelled_key_is_refused(kind: str, data: dict[str, Any]) -> None:
    assert errors(kind, data)


MODELS: list[type[BaseModel]] = [
    *(SuiteFile, TaskEntry, Guard, DocumentCounts, DocumentSources, SplitTasks),
    *(Provenance, RecordedInput, RecordedSuite, RecordedScore, RecordedTask, RecordedInterval),
    *(Recipe, Input, Source, Slice, Module, Routing, Hop, Tokenizer, Token, FromModel),
    *(config.SpecFile, config.BudgetConfig, config.WorkersConfig, config.TrackingConfig),
    *(config.BaselinesConfig, config.PromotionConfig, OptimizerConfig, StagesFile, StageConfig),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []
