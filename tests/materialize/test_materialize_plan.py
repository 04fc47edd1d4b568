"""Merge plans: parameters evaluated at every tensor."""

import pytest
import torch

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import RecipeError
from evosearch.materialize.plan import Input, TensorOp, donor_of, plan
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe
from evosearch.routing.fold import Fold

SHAPE = FAMILY.shape({"num_hidden_layers": 5})
Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def ops(**recipe: object) -> dict[str, TensorOp]:
    made = Recipe.model_validate(recipe)
    return {op.tensor: op for op in plan(made, dict.fromkeys(made.references(), SHAPE), SHAPE, specs())}


def named(inputs: tuple[Input, ...]) -> tuple[str, ...]:
    return tuple(source.reference for source in inputs)


def model(name: str, **parameters: object) -> dict[str, object]:
    return {"model": name, "parameters": parameters}


def test_every_tensor_has_one_operation_in_the_models_order():
    made = ops(
        merge_method="ties", base_model="base", models=[model("b", weight=1), model("a", weight=2)], dtype="bfloat16"
    )
    assert tuple(made) == tuple(SHAPE.by_name)
    op = made["model.norm.weight"]
    base, b, a = (Input(name, "model.norm.weight") for name in ("base", "b", "a"))
    assert (op.method, op.base, op.parents, op.sources) == ("ties", base, (b, a), (base, b, a))
    assert op.parameters.each("weight") == [1.0, 2.0]
    assert op.parameters.each("density") == [1.0, 1.0]
    assert op.parameters.choice("sign_method") == "magnitude"
    assert op.parameters.dtype is torch.bfloat16


def test_a_listed_base_is_a_model_of_linear_only():
    models = [model("base", weight=9), model("a", weight=1)]
    assert ops(merge_method="ties", base_model="base", models=models)[Q.format(0)].parents == (Input("a", Q.format(0)),)
    op = ops(merge_method="linear", base_model="base", models=models)[Q.format(0)]
    assert (op.base, named(op.parents), op.parameters.each("weight")) == (None, ("base", "a"), [9.0, 1.0])


def test_narrow_scope_first_and_fall_through_where_no_filter_matches():
    weight = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "lm_head", "value": 7}]
    made = ops(
        merge_method="task_arithmetic",
        base_model="base",
        models=[model("a", weight=weight), model("b")],
        parameters={"weight": [{"filter": "mlp", "value": 0.25}, {"value": 3}], "lambda": [1, 2]},
    )
    at = {name: op.parameters.each("weight") for name, op in made.items()}
    assert at[Q.format(0)] == [0.0, 3.0]
    assert at[Q.format(1)] == [0.25, 3.0]
    assert at[UP.format(1)] == [0.25, 0.25]
    assert at["lm_head.weight"] == [7.0, 3.0]
    assert made["model.embed_tokens.weight"].parameters["lambda"] == 1.0
    assert made["model.norm.weight"].parameters["lambda"] == 2.0


def test_gradients_put_final_norm_and_head_at_the_last_layer():
    """Unlike mergekit, which puts them at the first; see recipe/mergekit.py."""
    made = ops(merge_method="slerp", base_model="base", models=[model("a")], parameters={"t": [0.0, 0.5, 1.0]})
    at = {name: op.parameters["t"] for name, op in made.items()}
    assert [at[Q.format(layer)] for layer in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (at["model.embed_tokens.weight"], at["model.norm.weight"], at["lm_head.weight"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"models": [model("a", weight=[{"filter": "mlp", "value": 1}])]},
            r"recipe\.models\[0\]\.parameters\.weight: no filter matches tensor 'model\.embed_tokens\.weight'",
        ),
        ({"models": [model("a", wieght=1)]}, r"wieght: unknown parameter.*Did you mean 'weight'"),
        ({"models": [model("a", weight=1, density=0)]}, r"density: got 0.*\(0, 1\]"),
        ({"models": [model("a")]}, r"models\[0\]\.parameters\.weight: missing"),
        ({"models": [model("a", weight=1)], "base_model": None}, r"base_model: missing"),
        ({"models": [model("a", weight=1)], "parameters": {"trim_scope": "modle"}}, r"trim_scope: got 'modle'"),
        (
            {"merge_method": "linear", "models": [model("a")], "parameters": {"weight": 1}},
            r"recipe\.parameters\.weight: may or may not apply to base_model",
        ),
        (
            {"merge_method": "slerp", "models": [model("a"), model("b")], "parameters": {"t": 0.5}},
            r"got 2 models\. slerp takes 1 model besides the base",
        ),
    ],
)
def test_incompatible_models_are_refused(recipe, message):
    with pytest.raises(RecipeError, match=message):
        ops(**{"merge_method": "ties", "base_model": "base"} | recipe)


def test_a_route_takes_each_tensor_from_its_hop_and_divides_what_writes():
    hops = [("a", 0, 1.0), ("b", 3, 0.5), ("b", 3, 4.0), ("a", 4, 1.0), ("a", 4, 0.5)]
    listed = [{"model": name, "layer": layer, "scale": scale} for name, layer, scale in hops]
    made = ops(routing={"hops": listed})
    assert tuple(made) == tuple(SHAPE.by_name)
    for k, (name, layer, _) in enumerate(hops):
        assert made[Q.format(k)].sources == (Input(name, Q.format(layer)),)
    down = "model.layers.{}.mlp.down_proj.weight"
    assert [made[down.format(k)].fold for k in range(5)] == [Fold(gain) for gain in (1.0, 0.5, 2.0, 2.0, 1.0)]
    assert {made[name.format(k)].fold for name in (Q, UP) for k in range(5)} == {Fold()}
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert made[name].sources == (Input("a", name),)


def test_the_donor_is_the_base_or_else_the_first_model():
    models = [model("b", weight=1), model("a", weight=1)]
    assert donor_of(Recipe.model_validate({"merge_method": "linear", "models": models})) == "b"
    assert donor_of(Recipe.model_validate({"merge_method": "linear", "base_model": "a", "models": models})) == "a"
