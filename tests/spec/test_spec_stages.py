"""Multi-stage specs: validation, the searches of their stages, and search ids."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml

from evosearch.errors import SpecError
from evosearch.materialize.inputs import Opener
from evosearch.promotion.export_files import Origin, recipe_text
from evosearch.recipe.bundle import bundle
from evosearch.recipe.schema import Input, Recipe
from evosearch.service.register import read_champion
from evosearch.spec.spec import SearchSpec, Winner, load_spec
from evosearch.spec.stages import StagedSpec, load

if TYPE_CHECKING:
    from evosearch.setup.prepare import Prepared

ROOT = Path(__file__).parents[2]
World = Callable[..., Path]
Stages = list[dict[str, Any]]


def merge(*models: str, **more: Any) -> dict[str, Any]:
    hole = {"low": 0.0, "high": 1.0}
    listed = [{"model": model, "parameters": {"weight": hole}} for model in models]
    return {"merge_method": "linear", "models": listed} | more


def stage(name: str, recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "recipe": recipe, "optimizer": {"name": "random"}, "budget": {"candidates": 2}} | more


def two() -> Stages:
    return [stage("one", merge("./expert1", "./expert2")), stage("two", merge("stage:one", "./expert1"))]


def write(world: World, stages: Stages, **more: Any) -> Path:
    path = world("hybrid")
    data = yaml.safe_load(path.read_text())
    for key in ("recipe", "optimizer", "budget"):
        del data[key]
    path.write_text(yaml.safe_dump(data | {"stages": stages} | more, sort_keys=False))
    return path


def changed(stages: Stages, *keys: Any, to: Any) -> Stages:
    node: Any = stages
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    return stages


@pytest.mark.parametrize(
    ("stages", "more", "said"),
    [
        (
            two(),
            {"recipe": merge("./expert1")},
            r"hybrid\.yaml: recipe: belongs in a stage\. Each stage has its own name, recipe",
        ),
        (two(), {"budget": {"candidates": 3}}, r"hybrid\.yaml: budget: belongs in a stage"),
        (two()[:1], {}, r"hybrid\.yaml: stages: .*at least 2"),
        (changed(two(), 1, "name", to="one"), {}, r"stages\[1\]\.name: an earlier stage is named 'one' too"),
        (changed(two(), 1, "name", to="a.b"), {}, r"stages\[1\]\.name: .*pattern"),
        (changed(two(), 1, "name", to="placebo"), {}, r"stages\[1\]\.name: got 'placebo', which names a placebo"),
        (changed(two(), 1, "name", to="two-placebo"), {}, r"stages\[1\]\.name: got 'two-placebo', which names a"),
        (changed(two(), 0, "budget", to={}), {}, r"stages\[0\]\.budget: give "),
        (changed(two(), 0, "optimizer", "sigam", to=0.1), {}, r"stages\[0\]\.optimizer\.sigam: \w+ has no option"),
        (changed(two(), 0, "seed", to=1), {}, r"stages\[0\]\.seed: unknown key"),
        (
            changed(two(), 1, "recipe", "models", 0, "model", to="stage:oen"),
            {},
            r"stages\[1\]\.recipe\.models\[0\]\.model: got 'stage:oen', and no earlier stage is named 'oen'\. "
            r"Earlier stages: stage:one\. Did you mean 'one'\?",
        ),
        (
            changed(two(), 0, "recipe", "base_model", to="stage:two"),
            {},
            r"stages\[0\]\.recipe\.base_model: got 'stage:two'.*none, this is the first stage",
        ),
        (
            changed(two(), 1, "recipe", "models", 1, "model", to="stage:two+org/lora"),
            {},
            r"stages\[1\]\.recipe\.models\[1\]\.model: got 'stage:two'",
        ),
        (
            changed(two(), 1, "recipe", to=merge("./expert1", "./expert2")),
            {},
            r"stages\[0\]\.name: no later stage builds on 'one'\. 'stage:one' as a model",
        ),
        (
            changed(two(), 1, "search_minibatches", to=50),
            {},
            r"stages\[1\]\.search_minibatches: got 50, and 'choice' has 8 search documents",
        ),
        (two(), {"name": "n" * 61}, r"stages\[0\]\.name: the search's name .* is longer than 64"),
    ],
)  # fmt: skip
def test_problems_name_the_key(world: World, stages: Stages, more: dict[str, Any], said: str) -> None:
    path = write(world, copy.deepcopy(stages), **more)
    with pytest.raises(SpecError, match=said):
        every_stage(path)


def every_stage(path: Path) -> None:
    spec = load(path)
    assert isinstance(spec, StagedSpec)
    for index in range(spec.count):
        spec.stage(index, {"one": Winner({}, "0" * 64)})


def test_a_plain_spec_cannot_refer_to_stages(world: World) -> None:
    path = world(recipe=merge("stage:one", "./expert1"))
    with pytest.raises(SpecError, match=r"recipe\.models\[0\]\.model: got 'stage:one', and this spec has no stages"):
        load(path)


def test_a_stage_reference_may_be_a_routes_and_a_bases(world: World) -> None:
    route = {"routing": {"search": True, "models": ["stage:one", "./expert1"], "repeats": 1}}
    spec = load(write(world, [two()[0], stage("routes", route)]))
    assert isinstance(spec, StagedSpec)
    winner = {"merge_method": "linear", "models": [{"model": "org/a"}, {"model": "/inner.yaml"}]}
    inner = {"/inner.yaml": {"merge_method": "linear", "models": [{"model": "org/b"}]}}
    found = spec.stage(1, {"one": Winner(winner, "f" * 64, inner)})
    assert found.template["routing"]["models"] == ["stage:one", str(spec.file.parent / "expert1")]
    assert found.recipes == inner | {"stage:one": winner}
    assert found.config.recipe["routing"]["models"][0] == "stage:one"  # what the search_id is of
    assert found.baselines.models == tuple(str(spec.file.parent / f"expert{index}") for index in (1, 2))
    assert found.baselines.base_model is None
    assert found.name == "hybrid.routes"


def test_the_search_id_of_a_later_stage_depends_on_content_and_not_on_paths(world: World) -> None:
    spec = load(write(world, two()))
    assert isinstance(spec, StagedSpec)
    ids = [
        spec.stage(1, {"one": Winner({}, recipe_id, place=place)}).search_id()
        for place, recipe_id in (
            (None, "1" * 64),
            (Path("/b/winner.yaml"), "1" * 64),
            (None, "2" * 64),
        )
    ]
    assert ids[0] == ids[1] != ids[2]
    assert spec.stage(0, {}).search_id() not in ids
    own = yaml.safe_load(spec.file.read_text())
    own["stages"][0]["budget"] = {"candidates": 99}
    spec.file.write_text(yaml.safe_dump(own))
    again = load(spec.file)
    assert isinstance(again, StagedSpec)
    assert again.stage(0, {}).search_id() == spec.stage(0, {}).search_id()


def test_baselines_of_the_last_stage_may_be_the_specs_own(world: World) -> None:
    own = {"scales": [0.5], "base_model": "./base", "models": ["./expert2", "./expert1"]}
    spec = load(write(world, two(), baselines=own))
    assert isinstance(spec, StagedSpec)
    found = spec.stage(1, {"one": Winner({}, "0" * 64)})
    assert found.config.baselines.models == ("./expert2", "./expert1")
    assert found.baselines.base_model == str(spec.file.parent / "base")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ties", "31bedbcb932eda0575e24d4f3336d9dadc05fb4cf8841a6ed874f3edc1aa8972"),
        ("unlearn", "341caa772ffe17a7a5b193129a55cfb01e77bf3ec3144ec3b3eccf0ac5bd093f"),
    ],
)
def test_specs_of_one_search_keep_their_search_id(name: str, expected: str) -> None:
    """A new key that is not set does not change ids, so that older ledgers can be resumed."""
    spec = load(ROOT / "recipes" / f"{name}.yaml")
    assert isinstance(spec, SearchSpec)
    assert spec.search_id() == load_spec(spec.file).search_id() == expected


def test_a_champion_made_of_a_winner_is_recognized_by_its_content(tmp_path: Path) -> None:
    """A search that has the inner recipe among its models can be compared with the champion."""
    inner = tmp_path / "winner.yaml"
    inner.write_text(yaml.safe_dump({"merge_method": "linear", "models": [{"model": "org/a"}, {"model": "org/b"}]}))
    recipe = Recipe(merge_method="linear", models=(Input(model=str(inner)), Input(model="org/c")))
    text = recipe_text(recipe, Origin("old", "0" * 64, "3", "1" * 64, {}), Path("recipe.yaml"))
    for references, expected in (([str(inner), "org/c"], recipe.references()), (["org/c"], ("winner", "org/c"))):
        prepared = SimpleNamespace(models=SimpleNamespace(references=references, opener=Opener(tmp_path)))
        assert read_champion(text, "merged", cast("Prepared", prepared)).references() == expected


def test_a_champion_with_doubly_nested_winners_is_recognized_under_any_names(tmp_path: Path) -> None:
    """The middle recipe's file names its inner recipe `winner`; the champion's file gives that name to another."""

    def linear(*models: str) -> Recipe:
        return Recipe(merge_method="linear", models=tuple(Input(model=model) for model in models))

    def models(references: list[str]) -> SimpleNamespace:
        return SimpleNamespace(models=SimpleNamespace(references=references, opener=Opener(tmp_path)))

    def champion(recipe: Recipe) -> str:
        return recipe_text(recipe, Origin("old", "0" * 64, "3", "1" * 64, {}), Path("recipe.yaml"))

    first, middle, other = (tmp_path / name / "winner.yaml" for name in ("first", "middle", "other"))
    for path, own in (
        (first, linear("org/a", "org/b")),
        (middle, linear(str(first), "org/c")),
        (other, linear("org/e")),
    ):
        path.parent.mkdir()
        path.write_text(bundle(own).to_yaml())
    recipe = linear(str(other), str(middle), "org/d")
    text = champion(recipe)
    names = [data.get("name") for data in yaml.safe_load_all(text)]
    assert names == ["winner", "winner-2", "winner-3", None]
    prepared = models([str(middle), str(other), "org/d"])
    assert read_champion(text, "merged", cast("Prepared", prepared)) == recipe
    first.write_text(linear("org/a", "org/z").to_yaml())
    middle.write_text(bundle(linear(str(first), "org/c")).to_yaml())
    prepared = models([str(middle), str(other), "org/d"])
    found = read_champion(text, "merged", cast("Prepared", prepared))
    assert found.references() == (str(other), "winner-3", "org/d")
