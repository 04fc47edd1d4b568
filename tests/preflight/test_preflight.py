"""All problems that could stop a run are reported at once, before anything is written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import InputError, Problems
from evosearch.preflight.check import CheckReport, check
from evosearch.search.progress import Silent
from evosearch.service.run import run
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
Evosearch = Callable[..., tuple[int, str, str]]


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def checked(spec: Path) -> CheckReport:
    return check(spec, dry_run=False, watcher=Silent())


def told(spec: Path) -> list[str]:
    """Every problem as `where: what`."""
    return [f"{problem.where}: {problem.what}" for problem in checked(spec).problems]


def one(found: list[str], *parts: str) -> None:
    assert len([text for text in found if all(part in text for part in parts)]) == 1, (parts, found)


def own_copy(spec: Path, name: str) -> Path:
    """A folder of the shared world as a real copy, to be changed."""
    link = spec.parent / name
    if link.is_symlink():
        source = link.resolve()
        link.unlink()
        shutil.copytree(source, link)
    return link


def with_card(spec: Path, name: str, **front: Any) -> None:
    card = f"---\n{yaml.safe_dump(front)}---\n# A model\n"
    (own_copy(spec, name) / "README.md").write_text(card)


def six_mistakes(world: World) -> Path:
    spec = world()
    data = yaml.safe_load(spec.read_text())
    data["optimizer"]["sigam"] = 0.3
    data["recipe"]["models"][0]["parameters"]["wieght"] = 0.5
    data["recipe"]["models"].append({"model": "./nowhere", "parameters": {"weight": 0.1}})
    (spec.parent / "blocked").write_text("a file where a folder should be")
    data["ledger"] = f"sqlite:///{spec.parent}/blocked/ledger.db"
    data["promotion"]["register_as"] = "night"  # in JSON lines, which have no registry
    data["suite"] = "absent.yaml"
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    return spec


def test_six_errors_are_six_problems(world: World) -> None:
    spec = six_mistakes(world)
    found = told(spec)
    one(found, f"{spec}: optimizer.sigam", "has no option 'sigam'")
    one(found, f"{spec}: recipe.models[0].parameters.wieght", "unknown parameter")
    one(found, f"{spec}: recipe.models[2].model: {spec.parent}/nowhere: no such folder")
    one(found, f"{spec}: ledger", "blocked is a file, not a folder")
    one(found, f"{spec}: promotion.register_as", "JSON lines have no model registry")
    one(found, f"{spec}: suite", "no file")
    assert len(found) == 6


def test_run_lists_the_same_problems_and_writes_nothing(world: World, evosearch: Evosearch, tmp_path: Path) -> None:
    spec = six_mistakes(world)
    listed = checked(spec).problems
    before = sorted(path.name for path in spec.parent.iterdir())
    code, out, err = evosearch("run", spec, "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["problems"] == [problem.to_dict() for problem in listed]
    assert error["where"] == str(spec)
    assert error["what"] == "6 problems"
    for number, problem in enumerate(listed, start=1):
        assert f"{number}. {problem.where}: {problem.what}" in err
    assert not (tmp_path / "runs").exists()
    assert sorted(path.name for path in spec.parent.iterdir()) == before


def test_one_problem_is_the_error_itself(world: World, evosearch: Evosearch) -> None:
    spec = world(ledger="sqlite:///")
    code, out, _ = evosearch("run", spec, "--json")
    error = json.loads(out)["error"]
    assert (code, error["where"]) == (2, f"{spec}: ledger")
    assert "problems" not in error


def test_every_missing_or_incompatible_model_is_named(world: World) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = world()
    for name, change in (("expert1", {"num_hidden_layers": 2}), ("expert2", {"vocab_size": 24})):
        folder = own_copy(spec, name)
        config = LlamaConfig.from_pretrained(folder)
        for key, value in change.items():
            setattr(config, key, value)
        LlamaForCausalLM(config).save_pretrained(folder)
    found = told(spec)
    one(found, "recipe", "base' and", "expert1' cannot be merged: 3 and 2 layers")
    one(found, "recipe", "base' and", "expert2' cannot be merged: vocabularies of")
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"] += [{"model": f"./absent{index}", "parameters": {"weight": 1.0}} for index in (1, 2)]
    spec.write_text(yaml.safe_dump(data))
    found = told(spec)
    for index in (1, 2):
        one(found, f"recipe.models[{index + 1}].model: ", f"absent{index}: no such folder")
    one(found, "expert1' cannot be merged")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("reference", "what"), [("org/base+org/one+org/two", "got 2 adapters"), ("org/base+", "no adapter after the '+'")]
)
def test_an_invalid_reference_is_named_by_its_key_and_hides_no_other(world: World, reference: str, what: str) -> None:
    spec = world()
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"][0]["model"] = reference
    data["recipe"]["models"].append({"model": "./nowhere", "parameters": {"weight": 0.1}})
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    found = told(spec)
    one(found, f"{spec}: recipe.models[0].model: {reference}: {what}")
    one(found, f"{spec}: recipe.models[2].model: {spec.parent}/nowhere: no such folder")


def test_problems_of_the_suite_hide_no_others(world: World) -> None:
    spec = world(objectives=["choice", "generate"], optimizer={"name": "nsga2", "population": 6})
    suite = spec.parent / "suite.yaml"
    text = suite.read_text()
    suite.unlink()
    suite.write_text(text.replace("metric: acc", "metric: accuracy"))
    (own_copy(spec, "expert1") / "config.json").unlink()
    found = told(spec)
    one(found, "suite.yaml: tasks[0].metric", "accuracy")
    one(found, "expert1", "config.json")
    assert len(found) == 2
    suite.write_text("name: [")
    found = told(spec)
    one(found, "suite.yaml", "invalid YAML")
    one(found, "expert1", "config.json")
    assert len(found) == 2


def test_stages_with_errors_in_shared_keys(world: World) -> None:
    hole = {"low": 0.0, "high": 1.0}
    one_model = [{"model": "./expert1", "parameters": {"weight": hole}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": one_model}
    later = {**recipe, "models": [{"model": "stage:first", "parameters": {"weight": hole}}]}
    spec = world("two")
    data = yaml.safe_load(spec.read_text())
    optimizer, budget = {"name": "random"}, {"candidates": 2}
    data["stages"] = [
        {"name": "first", "recipe": recipe, "optimizer": optimizer, "budget": budget},
        {"name": "second", "recipe": later, "optimizer": optimizer, "budget": budget},
    ]
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    data["workers"]["thraeds"] = 2
    data["suite"] = "absent.yaml"
    recipe["models"][0]["parameters"]["wieght"] = 1.0
    spec.write_text(yaml.safe_dump(data))
    found = told(spec)
    one(found, "two.yaml: workers.thraeds", "unknown key")
    one(found, "two.yaml: suite", "no file")
    one(found, "two.yaml: stages[0].recipe.models[0].parameters.wieght", "unknown parameter")
    assert len(found) == 3


# --- licences and declared bases ----------------------------------------------------------------------------------


def test_licences_are_listed_and_required(world: World) -> None:
    spec = world()
    with_card(spec, "base", license="apache-2.0")
    with_card(spec, "expert1", license="other", license_name="Llama3")
    found = checked(spec)
    assert found.ok
    named = {Path(reference).name: licence for reference, licence in found.licences.items()}
    assert named == {"base": "apache-2.0", "expert1": "llama3", "expert2": None}
    (note,) = [text for text in found.notes if text.startswith("licences according to the model cards")]
    assert "expert2: not stated" in note

    own = yaml.safe_load(spec.read_text())["promotion"]
    spec = world(promotion={**own, "licences": ["Apache-2.0", "mit"]})
    found = told(spec)
    one(found, "world.yaml: promotion.licences", "expert1' is 'llama3'")
    one(found, "world.yaml: promotion.licences", "expert2' is not stated")
    assert len(found) == 2
    with pytest.raises(Problems, match="expert1' is 'llama3'"):
        run(spec, Silent())
    spec = world(promotion={**own, "licences": ["apache-2.0", "mit", "llama3"]})
    with_card(spec, "expert2", license=["mit", "apache-2.0"])
    assert told(spec) == []


def test_licences_are_part_of_the_identity_only_where_required(world: World) -> None:
    plain, asked = load_spec(world()), load_spec(world(promotion={"finalists": 2, "licences": ["mit"]}))
    assert "licences" not in plain.identity().get("promotion", {})
    assert asked.search_id() != plain.search_id()


def test_licences_of_models_within_models(world: World) -> None:
    """An adapter and a recipe have the licences of their models."""
    spec = world()
    inner = {"merge_method": "linear", "models": [{"model": "./expert2", "parameters": {"weight": 1.0}}]}
    (spec.parent / "inner.yaml").write_text(yaml.safe_dump(inner))
    data = yaml.safe_load(spec.read_text())
    data["recipe"]["models"][1]["model"] = "./inner.yaml"
    data["promotion"]["licences"] = ["mit"]
    spec.write_text(yaml.safe_dump(data))
    for name in ("base", "expert1"):
        with_card(spec, name, license="mit")
    with_card(spec, "expert2", license="cc-by-nc-4.0")
    (problem,) = told(spec)
    assert "expert2' is 'cc-by-nc-4.0'" in problem


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n", None),  # no end: all of the text would be YAML
        ("license: mit\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [true]\n---\n", None),
        ("---\nlicense: [mit, 3, {a: b}]\n---\n", "mit"),
        ("\ufeff---\nlicense: MIT\n---\n", "mit"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\n---\n", None),
    ],
)
def test_cards_of_all_kinds(tmp_path: Path, card: str, licence: str | None) -> None:
    from evosearch.checkpoints.model_card import card_of

    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert card_of(tmp_path).licence == licence
    assert card_of(tmp_path / "absent").licence is None


def test_a_card_that_names_another_base_is_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only hub ids identify a model."""
    spec = world()
    for name in ("base", "expert1", "expert2"):
        shutil.copytree((spec.parent / name).resolve(), spec.parent / "org" / name)
    monkeypatch.chdir(spec.parent)
    for name, base in (("expert1", "org/Base"), ("expert2", ["other/model"])):
        (spec.parent / "org" / name / "README.md").write_text(f"---\n{yaml.safe_dump({'base_model': base})}---\n")
    spec.write_text(spec.read_text().replace("./", "org/"))
    notes = [text for text in checked(spec).notes if "its card names" in text]
    assert notes == ["org/expert2: its card names the base model other/model, and the recipe's base_model is org/base"]


# --- ledgers and tracking stores ----------------------------------------------------------------------------------


def test_unwritable_ledgers_and_json_lines_files_are_problems(world: World) -> None:
    spec = world()
    folder = Path(os.environ["EVOSEARCH_RUNS"]) / "world" / "events.jsonl"
    folder.mkdir(parents=True)
    one(told(spec), "world.yaml: tracking.uri", "is a folder")
    folder.rmdir()
    other = spec.parent / "mlflow.db"
    other.write_text("this is no database")
    one(told(world(tracking={"uri": f"sqlite:///{other}"})), "world.yaml: tracking.uri", "is not a SQLite database")
    one(told(world(ledger=f"sqlite:///{spec.parent}")), "world.yaml: ledger")
    one(told(world(tracking={"uri": f"sqlite:///{other}/mlflow.db"})), "tracking.uri", "is a file, not a folder")
    one(told(world(tracking={"uri": "ftp://host/store"})), "tracking.uri", "got 'ftp://host/store'")
    assert other.read_text() == "this is no database"


def test_a_single_suite_and_a_recipe_are_checked(world: World) -> None:
    spec = world()
    recipe = spec.parent / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {"merge_method": "linear", "models": [{"model": f"./gone{i}", "parameters": {"weight": 1}} for i in (1, 2)]}
        )
    )
    found = told(recipe)
    one(found, "gone1")
    one(found, "gone2")
    assert checked(spec.parent / "suite.yaml").ok


def test_problems_travel_between_processes() -> None:
    import pickle

    error = Problems("night.yaml", [InputError("a", "is wrong"), InputError("b", "is wrong, too", "c", "d")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.to_dict()) == (str(error), error.to_dict())
    assert [problem.where for problem in again.problems] == ["a", "b"]


def test_keys_next_to_stages_are_one_problem(world: World, evosearch: Evosearch) -> None:
    spec = world()
    data = yaml.safe_load(spec.read_text())
    stage = {key: data.pop(key) for key in ("recipe", "budget")} | {"optimizer": {"name": "random"}}
    later = {**stage, "recipe": {**stage["recipe"], "base_model": "stage:a"}}
    spec.write_text(yaml.safe_dump({**data, "stages": [{"name": "a", **stage}, {"name": "b", **later}]}))
    (problem,) = told(spec)
    assert problem == f"{spec}: optimizer: belongs in a stage"
    code, out, _ = evosearch("run", spec, "--json")
    assert (code, json.loads(out)["error"]["where"]) == (2, f"{spec}: optimizer")


def test_later_stages_are_checked_before_the_first_starts(world: World, tmp_path: Path) -> None:
    """A filter that matches no tensor of the second stage is found before a candidate is scored."""
    spec = world("two")
    data = yaml.safe_load(spec.read_text())
    stage = {key: data.pop(key) for key in ("recipe", "budget")} | {"optimizer": {"name": "random"}}
    gap = [{"model": "stage:a", "parameters": {"weight": [{"filter": "mlp", "value": {"low": 0.0, "high": 1.0}}]}}]
    later = {**stage, "recipe": {**stage["recipe"], "models": gap}}
    del data["optimizer"]
    spec.write_text(yaml.safe_dump({**data, "stages": [{"name": "a", **stage}, {"name": "b", **later}]}))
    with pytest.raises(InputError, match=r"stages\[1\]\.recipe\.models\[0\]\.parameters\.weight: no filter matches"):
        run(spec, Silent())
    assert not (tmp_path / "runs").exists()
