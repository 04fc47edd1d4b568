"""Checkpoints of a run as models of a recipe: their order, selection and errors, in recipes and specs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evosearch.errors import RecipeError
from evosearch.jobs.pack import _with_checkpoints
from evosearch.recipe.files import load, load_file
from evosearch.recipe.run_checkpoints import expand
from evosearch.spec.spec import load_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1000, 200, 50, 800, 400, 600):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    for other in ("checkpoint-best", "checkpoint-1000.tmp", "logs"):
        (tmp_path / "run" / other).mkdir()
    (tmp_path / "run" / "checkpoint-5").write_text("a file")
    return tmp_path


def steps(folder: Path, **given: object) -> list[int]:
    entry = {"checkpoints": "./run/checkpoint-*", **given}
    found = expand({"merge_method": "swa", "models": [entry]}, folder, "r.yaml")["models"]
    assert all(one["model"].startswith("./run/checkpoint-") for one in found)
    return [int(one["model"].rpartition("-")[2]) for one in found]


def test_the_order_is_that_of_the_steps_as_numbers(folder: Path) -> None:
    assert steps(folder) == [50, 200, 400, 600, 800, 1000]
    assert steps(folder, last=2) == [800, 1000]
    assert steps(folder, start=400) == [400, 600, 800, 1000]
    assert steps(folder, every=2) == [200, 600, 1000]
    assert steps(folder, start=100, every=3, last=1) == [1000]


@pytest.mark.parametrize("pattern", ["run/checkpoint-*", "./run/checkpoint-*", "{}/run/checkpoint-*"])
def test_a_recipe_names_the_models(folder: Path, pattern: str) -> None:
    pattern = pattern.format(folder)
    text = f"merge_method: linear\nmodels:\n- {{checkpoints: '{pattern}', last: 2, parameters: {{weight: 0.5}}}}\n"
    (folder / "r.yaml").write_text(text + "- {model: hub/other, parameters: {weight: 1}}\n")
    recipe = load(folder / "r.yaml")
    assert [one.model for one in recipe.models] == [
        str(folder / "run" / "checkpoint-800"),
        str(folder / "run" / "checkpoint-1000"),
        "hub/other",
    ]
    assert recipe.models[0].parameters == recipe.models[1].parameters != recipe.models[2].parameters
    (written,) = load_file(folder / "r.yaml").recipes.values()
    assert written.models[0].model.endswith("run/checkpoint-800")
    (folder / "r.yaml").write_text("merge_method: swa\nmodules: {default: {models: [{checkpoints: run/checkpoint-*}]}}")
    assert len(load(folder / "r.yaml").modules["default"].models) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"last": 7}, r"r.yaml: models\[0\].checkpoints: last: 7, but the run has 6 of them.*At most 6"),
        ({"start": 2000}, r"no checkpoint has a step of at least 2000.*50, 200, 400, …, 1000"),
        ({"last": 0}, r"r.yaml: models\[0\].last"),
        ({"every": 1.5}, r"r.yaml: models\[0\].every"),
        ({"lsat": 2}, r"r.yaml: models\[0\].lsat.*Did you mean 'last'"),
        ({"checkpoints": "./run/checkpoint"}, r"got './run/checkpoint'.*one '\*' in place of the step"),
        ({"checkpoints": "./*/checkpoint-*"}, r"got './\*/checkpoint-\*'"),
        ({"checkpoints": "./run/step_*"}, r"no folder in '.*run' matches step_\*"),
        ({"checkpoints": "./ran/checkpoint-*"}, r"cannot be read: No such file or directory"),
        ({"model": "hub/other"}, r"r.yaml: models\[0\].model"),
    ],
)
def test_bad_entries_are_refused(folder: Path, given: dict[str, object], said: str) -> None:
    entry = {"checkpoints": "./run/checkpoint-*", **given}
    (folder / "r.yaml").write_text(f"merge_method: swa\nmodels: [{entry}]\n")
    with pytest.raises(RecipeError, match=said):
        load(folder / "r.yaml")


def test_a_step_may_not_have_two_folders(folder: Path) -> None:
    (folder / "run" / "checkpoint-0050").mkdir()
    with pytest.raises(RecipeError, match="two folders have the step 50"):
        steps(folder)


@pytest.mark.parametrize("staged", [False, True])
def test_specs_and_the_packs_of_jobs_name_the_models(folder: Path, staged: bool) -> None:
    entry = {"checkpoints": f"{folder}/run/checkpoint-*", "last": 2}
    data = {"recipe": {"merge_method": "linear", "models": [entry]}}
    data = {"stages": [data]} if staged else data
    packed = _with_checkpoints(data, folder / "night.yaml")
    recipe = packed["stages"][0]["recipe"] if staged else packed["recipe"]
    assert recipe["models"] == [{"model": f"{folder}/run/checkpoint-{step}"} for step in (800, 1000)]


def test_a_search_takes_checkpoints(world: Callable[..., Path]) -> None:
    path = world()
    for step in (7, 10):
        (path.parent / "run" / f"step_{step}").mkdir(parents=True)
    hole = {"weight": {"low": 0.0, "high": 1.0}}
    models = [{"checkpoints": "run/step_*", "parameters": hole}]
    spec = load_spec(world(recipe={"merge_method": "task_arithmetic", "base_model": "./base", "models": models}))
    expected = [{"model": str(path.parent / "run" / f"step_{step}"), "parameters": hole} for step in (7, 10)]
    assert spec.template["models"] == expected
    models[0]["last"] = 3
    with pytest.raises(RecipeError, match=r"world.yaml: recipe.models\[0\].checkpoints: last: 3, but the run has 2"):
        load_spec(world(recipe={"merge_method": "task_arithmetic", "base_model": "./base", "models": models}))
