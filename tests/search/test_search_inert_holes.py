"""Inert holes are refused by name, and skipped if only some layers have no tensor."""

from collections.abc import Mapping
from typing import Any

import pytest

from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe.parameters import lookup
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec
from evosearch.search.space.space import SearchSpace

HOLE = {"low": 0.0, "high": 1.0}
LAYERS = 4


def shape(dense: tuple[int, ...] = ()) -> ModelShape:
    """Four layers with attention and experts, some with an MLP instead."""
    tensors = [TensorSpec("model.embed_tokens.weight", Place.EMBEDDINGS)]
    for layer in range(LAYERS):
        inside = ("self_attn.q_proj", "mlp.up_proj" if layer in dense else "mlp.experts.0.up_proj")
        tensors += [TensorSpec(f"model.layers.{layer}.{name}.weight", Place.LAYER, layer) for name in inside]
    tensors += [TensorSpec("model.norm.weight", Place.FINAL_NORM), TensorSpec("lm_head.weight", Place.HEAD)]
    return ModelShape("LlamaForCausalLM", LAYERS, tuple(tensors))


def recipe(*weights: Any, base: Any = None, method: Any = "task_arithmetic", **more: Any) -> dict[str, Any]:
    """Models a, b, … with these weights (None: no weight of its own), and the base if it has one."""
    listed = [] if base is None else [("base", base)]
    listed += list(zip("abcdef", weights, strict=False))
    models = [{"model": f"org/{n}"} | ({} if w is None else {"parameters": {"weight": w}}) for n, w in listed]
    return {"merge_method": method, "base_model": "org/base", "models": models, **more}


def space(template: Mapping[str, Any], dense: tuple[int, ...] = ()) -> SearchSpace:
    return SearchSpace.from_template(template, shape(dense), specs(), "night.yaml: recipe")


def source(model: str, weight: Any) -> dict[str, Any]:
    return {"model": f"org/{model}", "layer_range": [0, LAYERS], "parameters": {"weight": weight}}


EVERY = "every model has its own weight. Remove it here, or remove the models' own"
SHARED = {"weight": HOLE}
FILTERED = [{"filter": "attn", "value": 0.3}, {"value": 0.5}]
SLICES = [{"sources": [source("a", 0.4), source("b", HOLE)], "parameters": SHARED}]


@pytest.mark.parametrize(
    ("template", "where", "message"),
    [
        (recipe(0.5, HOLE, parameters=SHARED), "parameters.weight", f"'weight' has no effect: {EVERY}"),
        (recipe(0.5, FILTERED, parameters=SHARED), "parameters.weight", f"'weight' has no effect: {EVERY}"),
        (
            recipe(0.5, 0.2, parameters={"weight": HOLE | {"per": "layer"}}),
            "parameters.weight",
            rf"'weight\[embeddings\]' has no effect: {EVERY}",
        ),
        (
            recipe(HOLE, base=HOLE, method="ties"),
            "models[0].parameters.weight",
            r"'models\[0\]\.weight' has no effect: 'org/base' is the base, from which ties takes differences",
        ),
        (
            recipe(HOLE, base=HOLE, method={"choices": ["ties", "task_arithmetic"]}),
            "models[0].parameters.weight",
            "is the base",
        ),
        (
            {"merge_method": "task_arithmetic", "base_model": "org/base", "slices": SLICES},
            "slices[0].parameters.weight",
            f"has no effect: {EVERY}",
        ),
        (
            {
                "merge_method": "linear",
                "modules": {"default": {"models": recipe(0.1, HOLE)["models"]}},
                "parameters": SHARED,
            },
            "parameters.weight",
            f"has no effect: {EVERY}",
        ),
        (
            recipe([{"filter": "*", "value": 0.2}, {"filter": "attn", "value": HOLE}]),
            "models[0].parameters.weight[1].value",
            "this hole has no effect: earlier filters match all tensors",
        ),
        (
            recipe([{"filter": "lm_head", "value": HOLE | {"per": "layer"}}, {"value": 0.5}]),
            "models[0].parameters.weight[0].value.per",
            "'layer' counts layers, but this hole affects only tensors outside of layers",
        ),
        (
            recipe(
                [{"filter": "layers.2.", "value": 0.3}],
                parameters={"weight": HOLE | {"per": "layer", "ends": "shared"}},
            ),
            "parameters.weight",
            r"'weight\[layer 2\]' has no effect",
        ),
    ],
)
def test_an_inert_number_is_refused(template: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        space(template)
    assert caught.value.where == f"night.yaml: recipe.{where}"
    assert caught.value.next or caught.value.allowed


@pytest.mark.parametrize(
    "template",
    [
        recipe(0.5, None, parameters=SHARED),  # one model has no weight of its own
        recipe(0.5, [{"filter": "attn", "value": 0.3}], parameters=SHARED),  # nor for every tensor
        recipe(HOLE | {"name": "w"}, 0.5, base=HOLE | {"name": "w"}),  # shared with an effective one
        recipe(HOLE, base=HOLE, method="linear"),
        recipe(0.5, parameters={"lambda": HOLE}),
        recipe(HOLE | {"per": "gradient", "points": LAYERS}),
        recipe(HOLE | {"per": "layer"}, HOLE | {"per": "group", "groups": 3}),
    ],
)
def test_an_effective_number_is_searched(template: dict[str, Any]) -> None:
    assert space(template).dimensions


def test_a_number_is_active_under_the_methods_that_use_it() -> None:
    laid_out = space(recipe(HOLE, base=HOLE, method={"choices": ["linear", "task_arithmetic"]}))
    active = {dimension.name: dimension.active_if for dimension in laid_out.dimensions}
    assert active == {
        "merge_method": None,
        "models[0].weight": ("merge_method", ("linear",)),
        "models[1].weight": None,
    }


@pytest.mark.parametrize("per", [{"per": "layer"}, {"per": "group", "groups": LAYERS}])
def test_layers_without_affected_tensors_have_no_number(per: dict[str, Any]) -> None:
    experts = [{"filter": "experts", "value": HOLE | per}, {"value": 0.5}]
    laid_out = space(recipe(experts), dense=(0, 2))
    assert [d.name for d in laid_out.dimensions] == [f"models[0].weight[experts][{per['per']} {i}]" for i in (1, 3)]
    filled = laid_out.fill({d.name: 0.1 * (i + 1) for i, d in enumerate(laid_out.dimensions)})
    scopes = (filled.models[0].parameters,)
    found = {
        tensor.name: lookup("weight", scopes, tensor.name, (tensor.layer or 0) / (LAYERS - 1))
        for tensor in shape((0, 2)).tensors
    }
    assert {name: value for name, value in found.items() if value != 0.5} == {
        "model.layers.1.mlp.experts.0.up_proj.weight": pytest.approx(0.1),
        "model.layers.3.mlp.experts.0.up_proj.weight": pytest.approx(0.2),
    }
