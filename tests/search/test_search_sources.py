"""Searches over the models of slices: dimensions, filled slices, frames, and mistakes."""

from collections.abc import Callable
from typing import Any

import pytest

from evosearch.errors import RecipeError, SpecError
from evosearch.merging.registry import specs
from evosearch.recipe.files import anchor, map_references
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Estimate, Observation
from evosearch.search.space.labels import labels
from evosearch.search.space.sources import at_hole, find
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.template import frame

WHERE = "night.yaml: recipe"
SHAPE = ModelShape(
    "LlamaForCausalLM",
    5,
    (
        TensorSpec("model.embed_tokens.weight", Place.EMBEDDINGS),
        *(TensorSpec(f"model.layers.{i}.mlp.up_proj.weight", Place.LAYER, i) for i in range(5)),
        TensorSpec("model.norm.weight", Place.FINAL_NORM),
    ),
)
MODELS = ["org/a", "org/b", "org/c"]


def template(per: str | None = "layer", **changes: Any) -> dict[str, Any]:
    """Layers 0 to 3 of one of three models each, and the last layer of one of two."""
    hole = {"choices": list(MODELS)} | ({"per": per} if per else {})
    low = {"sources": [{"model": hole, "layer_range": [0, 4]}]}
    high = {"sources": [{"model": {"choices": ["org/b", "org/a"]}, "layer_range": [4, 5]}]}
    return {"merge_method": "passthrough", "base_model": "org/base", "slices": [low, high], **changes}


def space(data: dict[str, Any]) -> SearchSpace:
    return SearchSpace.from_template(data, SHAPE, specs(), WHERE)


def sources_of(found: SearchSpace, **chosen: str) -> list[tuple[str, tuple[int, int]]]:
    """Model and layers of every slice of a genome; `layer_2="c"` chooses the model of a layer of the first slice."""
    named = {f"slices[0].model[{key.replace('_', ' ')}]": label for key, label in chosen.items()}
    filled = found.fill(found.initial() | named)
    return [(source.model, source.layer_range) for each in filled.slices for source in each.sources]


def test_every_layer_of_the_slice_has_a_choice() -> None:
    found = space(template())
    layered = [f"slices[0].model[layer {layer}]" for layer in range(4)]
    assert [d.name for d in found.dimensions] == [*layered, "slices[1].model"]
    assert {d.kind for d in found.dimensions} == {"categorical"}
    assert found.dimensions[0].choices == ("a", "b", "c")
    assert found.dimensions[-1].choices == ("b", "a")
    assert set(found.initial().values()) == {"a", "b"}
    assert not found.has_weights


def test_runs_of_layers_of_one_model_are_one_slice() -> None:
    found = space(template())
    assert sources_of(found) == [("org/a", (0, 4)), ("org/b", (4, 5))]
    assert sources_of(found, layer_2="c") == [
        ("org/a", (0, 2)),
        ("org/c", (2, 3)),
        ("org/a", (3, 4)),
        ("org/b", (4, 5)),
    ]
    assert sources_of(found, layer_2="c", layer_3="c")[1] == ("org/c", (2, 4))


def test_a_slice_may_have_one_choice_and_a_start() -> None:
    data = template(None)
    data["slices"][0]["sources"][0]["model"]["init"] = "org/c"
    found = space(data)
    assert [(d.name, d.init) for d in found.dimensions] == [("slices[0].model", "c"), ("slices[1].model", "b")]
    assert sources_of(found)[0] == ("org/c", (0, 4))


def test_parameters_go_along_with_every_run() -> None:
    data = template(parameters={"scale": [{"filter": "mlp", "value": {"low": 0.5, "high": 1.5}}, {"value": 1.0}]})
    data["slices"][0]["sources"][0]["parameters"] = {"scale": {"low": 0.8, "high": 1.2}}
    found = space(data)
    assert [d.name for d in found.dimensions if d.kind == "float"] == [
        "scale[mlp]",
        "slices[0].sources[0].scale",
    ]
    genome = found.initial() | {"slices[0].model[layer 1]": "b", "slices[0].sources[0].scale": 0.9}
    filled = found.fill(genome)
    assert [dict(each.sources[0].parameters) for each in filled.slices] == [{"scale": 0.9}] * 3 + [{}]
    assert "choice" in (found.not_differentiable() or "")


def test_slices_of_a_module_are_searched_too() -> None:
    data = template()
    found = space(
        {key: value for key, value in data.items() if key != "slices"}
        | {"modules": {"default": {"slices": data["slices"]}}}
    )
    assert found.dimensions[0].name == "modules.default.slices[0].model[layer 0]"
    filled = found.fill(found.initial() | {"modules.default.slices[0].model[layer 0]": "b"})
    assert [each.sources[0].layer_range for each in filled.modules["default"].slices] == [(0, 1), (1, 4), (4, 5)]


def test_corners_have_every_model_of_every_layer() -> None:
    found = space(template())
    seen = {name: set() for name in found.initial()}
    for genome in found.corners():
        found.validate(genome)
        for name, label in genome.items():
            seen[name].add(label)
    assert all(seen[d.name] == set(d.choices) for d in found.dimensions)


def test_the_frame_has_all_models() -> None:
    bare = frame(template(), WHERE)
    assert bare.references() == ("org/base", "org/a", "org/b", "org/c")
    assert [source.layer_range for source in bare.slices[0].sources] == [(0, 4)] * 3
    sites = find(template(), WHERE)
    place = "night.yaml: recipe.slices[0].sources[0].model.choices[2]"
    assert at_hole("night.yaml: recipe.slices[0].sources[2].layer_range", sites) == place
    assert at_hole("night.yaml: recipe.base_model", sites) == "night.yaml: recipe.base_model"


def test_references_are_anchored_and_mapped(tmp_path: Any) -> None:
    data = template()
    data["slices"][0]["sources"][0]["model"] = {"choices": ["./a", "../b"], "per": "layer", "init": "./a"}
    hole = anchor(data, tmp_path)["slices"][0]["sources"][0]["model"]
    assert hole == {"choices": [str(tmp_path / "a"), str(tmp_path.parent / "b")], "per": "layer", "init": hole["init"]}
    assert hole["init"] == str(tmp_path / "a")
    assert map_references(template(), str.upper)["slices"][0]["sources"][0]["model"]["per"] == "layer"


def test_labels_do_not_depend_on_the_folder() -> None:
    assert list(labels(["/here/sort", "/here/copy"]).values()) == list(labels(["/there/sort", "hub/copy"]).values())
    assert len(set(labels(["one/sort", "other/sort", "sort"]).values())) == 3


@pytest.mark.parametrize(
    "config",
    [
        {"name": "random"},
        {"name": "tpe", "population": 6},
        {"name": "cat_cma", "population": 6},
        {"name": "nsga2", "population": 6},
        {"name": "grid", "points": 2},
    ],
)
def test_optimizers_of_categories_search_it(config: dict[str, Any]) -> None:
    found = space(template(None if config["name"] == "grid" else "layer"))  # a grid has at most two dimensions
    made = create(OptimizerConfig.model_validate({"seed": 0, **config}), found.dimensions, found.initial())
    for _ in range(1 if config["name"] == "grid" else 3):
        genomes = made.ask(made.population)
        filled = [found.fill(genome) for genome in genomes]
        made.tell(
            [_observed(str(i), genome, recipe) for i, (genome, recipe) in enumerate(zip(genomes, filled, strict=True))]
        )
    assert len({recipe.to_yaml() for recipe in filled}) > 1


def test_optimizers_of_numbers_refuse_it() -> None:
    found = space(template())
    with pytest.raises(SpecError, match=r"cma_es takes only numbers, but slices\[0\]\.model\[layer 0\].*have choices"):
        create(OptimizerConfig(name="cma_es"), found.dimensions, found.initial())


def _observed(name: str, genome: Any, recipe: Any) -> Observation:
    return Observation(name, genome, (Estimate(-float(len(recipe.slices)), 0.1, 10),))


def change(data: dict[str, Any], **hole: Any) -> None:
    data["slices"][0]["sources"][0]["model"].update(hole)


SOURCE = r"night\.yaml: recipe\.slices\[0\]\.sources\[0\]"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda t: change(t, choices=["org/a"]), rf"{SOURCE}\.model\.choices: 1 given\. At least two"),
        (lambda t: change(t, choices=[]), rf"{SOURCE}\.model\.choices: 0 given"),
        (lambda t: change(t, choices=["org/a", "org/b", "org/a"]), rf"{SOURCE}\.model\.choices\[2\]: 'org/a' is given"),
        (lambda t: change(t, choices=["org/a", 3]), rf"{SOURCE}\.model\.choices\[1\]"),
        (lambda t: change(t, per="tensor"), rf"{SOURCE}\.model\.per: .*layer"),
        (lambda t: change(t, pre="layer"), rf"{SOURCE}\.model\.pre: unknown key.*Did you mean 'per'"),
        (lambda t: change(t, init="org/z"), rf"{SOURCE}\.model\.init: got 'org/z'\. One of the choices: org/a, org/b"),
        (lambda t: t.update(merge_method="linear"), r"recipe\.merge_method: got 'linear'.*passthrough"),
        (lambda t: t.pop("base_model"), r"recipe\.base_model: missing"),
        (
            lambda t: t["slices"][0]["sources"].append({"model": "org/d", "layer_range": [0, 4]}),
            r"recipe\.slices\[0\]\.sources: 2 sources.*Add the other models to its choices",
        ),
        (lambda t: t["slices"][0]["sources"][0].update(layer_range=[4, 4]), rf"{SOURCE}.*is empty"),
        (
            lambda t: t["slices"][0]["sources"][0].update(layer_range=[0, 99_999]),
            rf"{SOURCE}\.layer_range: 99999 layers",
        ),
        (lambda t: t["slices"][0]["sources"][0].update(layers=[0, 4]), rf"{SOURCE}\.layers: unknown key"),
        (
            lambda t: t.update(parameters={"scale": [0.5, 1.0]}),
            r"recipe\.parameters\.scale: a gradient counts the layers of a slice",
        ),
        (
            lambda t: t.update(parameters={"scale": [{"filter": "mlp", "value": [0.5, 1.0]}]}),
            r"recipe\.parameters\.scale\[0\]\.value: a gradient",
        ),
        (
            lambda t: t["slices"][1]["sources"][0].update(model={"low": 0.0, "high": 1.0}),
            r"slices\[1\]\.sources\[0\]\.model: a hole is not allowed here",
        ),
    ],
)
def test_a_mistake_names_the_key(mistake: Callable[[dict[str, Any]], Any], message: str) -> None:
    data = template()
    mistake(data)
    with pytest.raises(RecipeError, match=message):
        frame(data, WHERE)
    with pytest.raises(RecipeError, match=message):
        space(data)


def test_entries_of_models_have_no_such_hole() -> None:
    data = {"merge_method": "passthrough", "models": [{"model": {"choices": MODELS}}]}
    with pytest.raises(RecipeError, match=r"recipe\.models\[0\]\.model: a hole is not allowed here"):
        frame(data, WHERE)
