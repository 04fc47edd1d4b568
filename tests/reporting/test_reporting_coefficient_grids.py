"""Coefficients of recipes by layer and module, from the recipe alone."""

from typing import Any

from evosearch.recipe.schema import Recipe
from evosearch.reporting.page.coefficient_grids import ALL, ENDS, OTHER, SHARED, grids


def recipe(weight: Any, **more: Any) -> Recipe:
    models = [{"model": "./a", "parameters": {"weight": weight}}]
    return Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "./b", "models": models} | more)


def test_a_number_is_one_cell_and_shared_ones_belong_to_all_models() -> None:
    own, shared = grids(recipe(0.5, parameters={"lambda": 0.7}))
    assert (own.parent, own.parameter, own.values) == ("./a", "weight", {(ALL, "0"): 0.5})
    assert (shared.parent, shared.parameter, shared.values) == (SHARED, "lambda", {(ALL, "0"): 0.7})


def test_a_list_over_layers_has_its_ends_as_columns() -> None:
    entries = [
        {"filter": "model.embed_tokens.weight", "value": 0.1},
        {"filter": "lm_head.weight", "value": 0.9},
        {"filter": "model.norm.weight", "value": 0.9},
        {"filter": "*", "value": [0.2, 0.3, 0.4]},
    ]
    (grid,) = grids(recipe(entries), ["models[0].weight[layer 0]"])
    assert grid.columns == ("embed_tokens", "0", "1", "2", "norm", "lm_head")
    assert [grid.values[ALL, column] for column in grid.columns] == [0.1, 0.2, 0.3, 0.4, 0.9, 0.9]


def test_kinds_are_rows_in_the_order_of_the_model() -> None:
    entries = [
        {"filter": "mlp.up_proj", "value": [1.0, 2.0]},
        {"filter": "q_proj", "value": [3.0, 4.0]},
        {"filter": "norm", "value": 5.0},
        {"filter": None, "value": 6.0},
    ]
    genome = ["models[0].weight[q_proj 0]", "models[0].weight[up_proj 0]", "models[0].weight[norm]"]
    (grid,) = grids(recipe(entries), genome)
    assert grid.rows[:2] == ("q_proj", "mlp.up_proj")
    assert set(grid.rows[2:]) == {ENDS, OTHER}
    assert grid.values["q_proj", "1"] == 4.0
    assert grid.values["mlp.up_proj", "0"] == 1.0
    assert grid.values[ENDS, "norm"] == 5.0
    assert grid.values[OTHER, "1"] == 6.0


def test_a_gradient_over_points_keeps_its_points_and_slices_follow_each_other() -> None:
    (grid,) = grids(recipe([0.0, 1.0]), ["models[0].weight[point 0]", "models[0].weight[point 1]"])
    assert [grid.values[ALL, column] for column in grid.columns] == [0.0, 1.0]
    slices = [
        {"sources": [{"model": "./a", "layer_range": [0, 2], "parameters": {"weight": 0.3}}]},
        {"sources": [{"model": "./a", "layer_range": [4, 7], "parameters": {"weight": [0.0, 1.0]}}]},
    ]
    stacked = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "./b", "slices": slices})
    (grid,) = grids(stacked)
    assert [grid.values[ALL, column] for column in grid.columns] == [0.3, 0.3, 0.0, 0.5, 1.0]


def test_a_route_has_no_coefficients() -> None:
    assert grids(Recipe.model_validate({"routing": {"hops": [{"model": "./a", "layer": 0}]}})) == []
