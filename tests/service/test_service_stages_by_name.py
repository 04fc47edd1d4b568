"""A stage's winner is known by the stage's name, and travels as data wherever it is needed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import RecipeError, SpecError
from evosearch.execution.worker import Worker
from evosearch.recipe import files
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.schema import Recipe
from evosearch.reporting.export import export
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.service.merge import merge
from evosearch.service.run import run
from evosearch.setup.executors import worker_config
from evosearch.setup.loading import read_search
from evosearch.setup.prepare import prepare
from evosearch.spec.lookup import find
from evosearch.spec.spec import SearchSpec, Winner, load_spec
from evosearch.spec.stages import StagedSpec, load
from evosearch.tracking.changes import Changes, Plan
from evosearch.tracking.translator import Translator

World = Callable[..., Path]
WEIGHT = {"low": 0.0, "high": 1.0}


def stage(name: str, *models: str, candidates: int = 2) -> dict[str, Any]:
    listed = [{"model": model, "parameters": {"weight": WEIGHT}} for model in models]
    recipe = {"merge_method": "linear", "models": listed}
    optimizer = {"name": "random", "population": 2, "seed": 1, "start": "init"}
    return {"name": name, "recipe": recipe, "optimizer": optimizer, "budget": {"candidates": candidates}}


@pytest.fixture
def spec(world: World) -> Path:
    path = world("hybrid", baselines={"scales": [0.5]}, promotion={"finalists": 1})
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    inner = {"merge_method": "linear", "models": [{"model": "./base"}, {"model": "./expert1"}]}
    for entry in inner["models"]:
        entry["parameters"] = {"weight": 0.5}
    (path.parent / "inner.yaml").write_text(yaml.safe_dump(inner))
    listed = [stage("one", "./inner.yaml", "./expert2"), stage("two", "stage:one", "./expert1", candidates=4)]
    path.write_text(yaml.safe_dump(data | {"stages": listed}, sort_keys=False))
    return path


def second(spec: Path, winner: Winner) -> SearchSpec:
    staged = load(spec)
    assert isinstance(staged, StagedSpec)
    return staged.stage(1, {"one": winner})


def asked(name: str) -> list[dict[str, Any]]:
    """The recipes that a search proposed, in order."""
    run_dir = find(name)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        return [event.payload["recipe"] for event in ledger.events(search_id, types=("asked",))]


def test_a_worker_scores_a_later_stage_without_recipe_files(spec: Path, tmp_path: Path) -> None:
    """`stage:one` is made of a recipe file; both go to the worker as text."""
    inner = str(spec.parent / "inner.yaml")
    expert = str(spec.parent / "expert2")
    found = {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 0.5}} for name in (inner, expert)],
    }
    contents = _contents(spec)
    winner = Winner(found, recipe_id(Recipe.model_validate(found), contents))
    prepared = prepare(second(spec, winner), Silent())
    config = worker_config(prepared.spec.config.workers, prepared.models, prepared.suite, "float32")
    assert config.recipes.keys() == {"stage:one", inner}
    assert config.inputs["stage:one"] == winner.recipe_id
    assert "winner.yaml" not in json.dumps([config.recipe, dict(config.recipes)])
    Path(inner).unlink()
    shutil.rmtree(config.cache)
    outcome = Worker(config, harness=prepared.harness).run(
        Job("0@search", prepared.example, prepared.batches["search"])
    )
    assert outcome.card is not None, outcome.failure


def _contents(spec: Path) -> dict[str, str]:
    """Reference → content of the first stage's models."""
    staged = load(spec)
    assert isinstance(staged, StagedSpec)
    return prepare(staged.stage(0, {}), Silent()).models.inputs


def test_a_changed_winner_stops_the_next_stage(spec: Path) -> None:
    found = {"merge_method": "linear", "models": [{"model": str(spec.parent / "base")}]}
    found["models"][0]["parameters"] = {"weight": 1.0}  # type: ignore[index]
    with pytest.raises(SpecError) as caught:
        prepare(second(spec, Winner(found, "0" * 64)), Silent())
    text = str(caught.value)
    assert "hybrid.yaml: stages[1].recipe: 'stage:one' is now another model (recipe_id 000000000000 then" in text
    assert "One of the models it is made of changed: restore it" in text


def test_records_and_exports_do_not_need_files_of_winners_or_nested_recipes(spec: Path, tmp_path: Path) -> None:
    run(spec, Silent())
    run_dir = find("hybrid")
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        _, state = read_search(ledger, run_dir)
    inner = str(spec.parent / "inner.yaml")
    assert state.recipes.keys() == {"stage:one", inner}
    assert state.recipes["stage:one"]["models"][0]["model"] == inner
    find("hybrid.one").winner_file.unlink()
    Path(inner).unlink()
    written = export("hybrid", "recipe", tmp_path / "moved" / "best.yaml", "3", False, Silent())
    documents = list(yaml.safe_load_all((tmp_path / "moved" / "best.yaml").read_text()))
    assert [document.get("name") for document in documents] == ["inner", "one", None]
    assert documents[1]["models"][0]["model"] == "inner"
    assert documents[2]["models"][0]["model"] == "one"
    assert merge(tmp_path / "moved" / "best.yaml", tmp_path / "m", Silent()).recipe_id == written.recipe_id


def test_nested_recipe_files_change_no_id(world: World, spec: Path) -> None:
    """A nested recipe has the id of its file, however it is read."""
    inner = spec.parent / "inner.yaml"
    plain = load_spec(world("plain", recipe=stage("x", "./inner.yaml", "./expert2")["recipe"]))
    prepared = prepare(plain, Silent())
    assert prepared.models.inputs[str(inner)] == recipe_id(files.load(inner), _contents_of(inner, prepared))
    assert prepared.models.opener.nested == {str(inner): files.load(inner).to_dict()}


def _contents_of(inner: Path, prepared: Any) -> dict[str, str]:
    recipe = files.load(inner)
    return {name: prepared.models.opener.open(name).content_sha256() for name in recipe.references()}


def test_the_name_of_a_stage_means_nothing_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("merge_method: linear\nmodels: [{model: stage:one, parameters: {weight: 1.0}}]\n")
    assert files.load(path).references() == ("stage:one",)
    with pytest.raises(RecipeError, match=r"stage:one: unknown stage"):
        merge(path, tmp_path / "out", Silent())


def rendered(changes: Changes) -> str:
    """The recipe of a candidate's run."""
    assert changes.recipe is not None
    return changes.recipe()


def test_a_candidates_recipe_in_mlflow_includes_nested_recipes() -> None:
    inner = {"merge_method": "linear", "models": [{"model": "org/a", "parameters": {"weight": 1.0}}]}
    outer = {"merge_method": "linear", "models": [{"model": "stage:one", "parameters": {"weight": 1.0}}]}
    asked = {"candidate": "0", "group": 0, "genome": {}, "recipe": outer, "recipe_id": "1" * 64}
    for recipes, names in (({"stage:one": inner}, ["one", None]), (None, [None])):
        started = {"name": "s", "spec": {}, "inputs": {}} | ({"recipes": recipes} if recipes else {})
        plan: Plan = {}
        translator = Translator("0" * 64, "s")
        translator.translate(Event(1, 1.0, "started", started), plan)
        translator.translate(Event(2, 2.0, "asked", asked), plan)
        text = rendered(plan["0"])
        assert [document.get("name") for document in yaml.safe_load_all(text)] == names
