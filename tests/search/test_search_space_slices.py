"""Search over slices: holes in their parameters, misplaced holes, and baselines."""

from typing import Any

import pytest

from evosearch.errors import RecipeError
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Place, TensorSpec
from evosearch.search.baselines import baselines
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.template import frame, is_stacked

WEIGHT = Param(-1.0, 2.0, per_model=True)
METHODS = {
    "linear": MethodSpec("linear", "", {"weight": WEIGHT}, takes_base=False),
    "ties": MethodSpec("ties", "", {"weight": WEIGHT, "lambda": Param(0.0, 2.0, default=1.0)}, needs_base=True),
    "passthrough": MethodSpec("passthrough", "", {"scale": Param(0.0, 2.0, default=1.0, per_model=True)}, "", False),
}
SHAPE = ModelShape(
    "LlamaForCausalLM",
    5,
    (
        TensorSpec("model.embed_tokens.weight", Place.EMBEDDINGS),
        *(TensorSpec(f"model.layers.{i}.mlp.up_proj.weight", Place.LAYER, i) for i in range(5)),
        TensorSpec("model.norm.weight", Place.FINAL_NORM),
    ),
)
HOLE = {"low": 0.0, "high": 1.5}


def source(model: str, first: int, end: int, **parameters: object) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end]} | ({"parameters": parameters} if parameters else {})


def stacked(low: Any = HOLE, high: Any = HOLE, **more: object) -> dict[str, Any]:
    """Five layers of two models of four: a hole at a source, one at a slice."""
    slices = [
        {"sources": [source("org/a", 0, 2, weight=low), source("org/b", 0, 2, weight=0.5)]},
        {"sources": [source("org/a", 1, 4), source("org/b", 1, 4)], "parameters": {"weight": high}},
    ]
    return {"merge_method": "ties", "base_model": "org/base", "slices": slices, **more}


def space(template: dict[str, Any]) -> SearchSpace:
    return SearchSpace.from_template(template, SHAPE, METHODS, "night.yaml: recipe")


def test_every_scope_of_a_slice_may_have_a_hole() -> None:
    laid_out = space(stacked([{"filter": "mlp", "value": HOLE}, {"value": 0.1}], parameters={"lambda": HOLE}))
    assert {d.name: (d.parameter, d.scope) for d in laid_out.dimensions} == {
        "lambda": ("lambda", ""),
        "slices[0].sources[0].weight[mlp]": ("weight", "slices[0].sources[0]"),
        "slices[1].weight": ("weight", "slices[1]"),
    }
    genome = {"lambda": 1.25, "slices[0].sources[0].weight[mlp]": 0.25, "slices[1].weight": 0.75}
    filled = laid_out.fill(genome)
    assert filled.slices[0].sources[0].parameters["weight"] == [
        {"filter": "mlp", "value": 0.25},
        {"filter": None, "value": 0.1},
    ]
    assert filled.slices[0].sources[1].parameters["weight"] == 0.5
    assert filled.slices[1].parameters["weight"] == 0.75
    assert filled.parameters["lambda"] == 1.25
    assert Recipe.model_validate(filled.to_dict()) == filled


def test_holes_of_one_name_share_one_value_across_slices() -> None:
    named = HOLE | {"name": "w"}
    laid_out = space(stacked(named, named))
    assert [(d.name, d.parameter, d.scope) for d in laid_out.dimensions] == [("w", "weight", None)]
    filled = laid_out.fill({"w": 0.75})
    assert filled.slices[0].sources[0].parameters["weight"] == filled.slices[1].parameters["weight"] == 0.75


def test_a_module_may_contain_the_slices() -> None:
    inner = stacked()
    module = {"slices": inner.pop("slices"), "parameters": {"lambda": HOLE}}
    laid_out = space(inner | {"modules": {"default": module}})
    assert [d.name for d in laid_out.dimensions] == [
        "modules.default.lambda",
        "modules.default.slices[0].sources[0].weight",
        "modules.default.slices[1].weight",
    ]
    filled = laid_out.fill(laid_out.initial())
    assert filled.modules["default"].slices[1].parameters["weight"] == 0.75


def test_the_method_may_be_searched_too() -> None:
    laid_out = space(stacked(merge_method={"choices": ["ties", "linear"]}, parameters={"lambda": HOLE}))
    by_name = {d.name: d for d in laid_out.dimensions}
    assert by_name["lambda"].active_if == ("merge_method", ("ties",))
    filled = laid_out.fill(laid_out.initial() | {"merge_method": "linear"})
    assert (filled.merge_method, dict(filled.parameters)) == ("linear", {})
    assert filled.slices[1].parameters["weight"] == 0.75


@pytest.mark.parametrize(
    "per",
    [
        {"per": "layer"},
        {"per": "group", "groups": 2},
        {"per": "gradient", "points": 2},
        {"per": "layer", "ends": "shared"},
    ],
)
@pytest.mark.parametrize("where", ["source", "slice", "recipe", "module"])
def test_holes_over_depth_are_refused_where_layers_are_stacked(per: dict[str, Any], where: str) -> None:
    hole = HOLE | per
    template = {
        "source": stacked(hole),
        "slice": stacked(0.5, hole),
        "recipe": stacked(0.5, 0.5, parameters={"lambda": hole}),
        "module": {
            "merge_method": "ties",
            "base_model": "org/base",
            "modules": {"default": {"slices": stacked(0.5, 0.5)["slices"], "parameters": {"lambda": hole}}},
        },
    }[where]
    places = {
        "source": r"slices\[0\]\.sources\[0\]\.parameters\.weight",
        "slice": r"slices\[1\]\.parameters\.weight",
        "recipe": r"parameters\.lambda",
        "module": r"modules\.default\.parameters\.lambda",
    }
    message = rf"recipe\.{places[where]}\.per: '{per['per']}' counts the layers of a complete model"
    with pytest.raises(RecipeError, match=message):
        space(template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["slices"][0].update(base_model=HOLE),
            r"recipe\.slices\[0\]\.base_model: a hole is not allowed here",
        ),
        (
            lambda t: t["slices"][1]["sources"][0].update(layer_range=[HOLE, 4]),
            r"slices\[1\]\.sources\[0\]\.layer_range\[0\]: a hole is not allowed here",
        ),
        (lambda t: t["slices"][1]["sources"][0].update(model=HOLE), r"sources\[0\]\.model: a hole is not allowed here"),
        (
            lambda t: t["slices"][1].update(parameters={"wieght": HOLE}),
            r"wieght: unknown parameter.*Did you mean 'weight'",
        ),
        (
            lambda t: t["slices"][1]["sources"][1].update(layer_range=[0, 9]),
            r"slices\[1\]\.sources\[1\]\.layer_range: 9 layers, but the first source has 3",
        ),
        (lambda t: t["slices"][1].update(residual=1), r"slices\[1\]\.residual: unknown key.*'residual_weight'"),
    ],
)
def test_a_mistake_in_a_slice_names_the_key(change: Any, message: str) -> None:
    template = stacked()
    change(template)
    with pytest.raises(RecipeError, match=message):
        space(template)


def test_the_frame_has_the_stacked_layers_without_parameters() -> None:
    template = stacked(merge_method={"choices": ["ties", "linear"]})
    bare = frame(template, "recipe")
    assert is_stacked(template)
    assert [source.layer_range for part in bare.slices for source in part.sources] == [(0, 2), (0, 2), (1, 4), (1, 4)]
    assert bare.references() == ("org/base", "org/a", "org/b")
    assert not is_stacked({"models": []})


def test_parents_of_slices_are_named_once() -> None:
    filled = space(stacked()).fill(space(stacked()).initial())
    assert filled.parents == ("org/a", "org/b")
    started = space(stacked()).with_weight([0.2, 0.8])
    assert started == {"slices[0].sources[0].weight": 0.2, "slices[1].weight": 0.5}  # shared by both: the mean


def test_models_of_different_depth_have_only_baselines_without_a_merge() -> None:
    example = space(stacked()).fill(space(stacked()).initial())
    found = baselines(example, (0.3, 0.6), alike=False)
    assert [(baseline.name, baseline.skipped) for baseline in found] == [
        ("base", None),
        ("parent:0", None),
        ("parent:1", None),
        *((name, "the models have different layers") for name in ("uniform", "scale:0.30", "scale:0.60")),
    ]


def test_baselines_of_slices_are_plain_merges_of_their_models() -> None:
    slices = [{"sources": [source("org/a", 0, 2, weight=0.3)]}, {"sources": [source("org/b", 2, 4, weight=0.3)]}]
    example = Recipe.model_validate({"merge_method": "ties", "base_model": "org/base", "slices": slices})
    found = {baseline.name: baseline.recipe for baseline in baselines(example, (0.3,))}
    assert found["uniform"] is not None
    assert [entry.model for entry in found["uniform"].models] == ["org/a", "org/b"]
    assert found["scale:0.30"] is not None
    assert (found["scale:0.30"].merge_method, found["scale:0.30"].base_model) == ("task_arithmetic", "org/base")


def test_an_inert_hole_of_a_slice_is_refused() -> None:
    elsewhere = [{"filter": "embed_tokens", "value": HOLE}, {"value": 0.5}]
    with pytest.raises(RecipeError, match=r"slices\[1\].*weight.*no tensor of this slice has 'embed_tokens'"):
        space(stacked(high=elsewhere))
    with pytest.raises(RecipeError, match=r"no tensor of this slice has 'layers\.3\.'"):
        space(stacked(low=[{"filter": "layers.3.", "value": HOLE}, {"value": 0.5}]))
    assert space(stacked(low=elsewhere)).dimensions  # embeddings belong to the first slice
    assert space(
        stacked(high=[{"filter": "norm", "value": HOLE}, {"value": 0.5}])
    ).dimensions  # the head belongs to the last
