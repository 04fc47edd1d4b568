"""Transfer of a winner's numbers into a space that divides the tensors in another way."""

from typing import Any

import pytest

from evosearch.materialize.plan import plan
from evosearch.merging.registry import specs
from evosearch.recipe.schema import Recipe
from evosearch.search.space.space import SearchSpace
from evosearch.setup.transfer import fixed_otherwise, transferred
from tests.search.test_search_space import llama

SHAPE = llama(layers=4)


def space(**hole: Any) -> SearchSpace:
    models = [{"model": name, "parameters": {"weight": {"low": 0.0, "high": 1.5, **hole}}} for name in ("a", "b")]
    template = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    return SearchSpace.from_template(template, SHAPE, specs())


def plans(ours: SearchSpace, theirs: Recipe) -> list[Any]:
    shapes = dict.fromkeys(("base", "a", "b", "c"), SHAPE)
    return [plan(one, shapes, SHAPE, specs()) for one in (ours.with_derivatives(ours.initial()), theirs)]


def moved(theirs: Recipe, ours: SearchSpace) -> Recipe:
    """Our recipe with the numbers of another one."""
    return ours.fill(ours.initial() | transferred(ours.dimensions, *plans(ours, theirs)))


def weights(recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    ops = plan(recipe, dict.fromkeys(("base", "a", "b"), SHAPE), SHAPE, specs())
    return {op.tensor: op.parameters.own["weight"] for op in ops}


def filled(of: SearchSpace) -> Recipe:
    return of.fill({d.name: 0.1 + 0.7 * k / len(of.dimensions) for k, d in enumerate(of.dimensions)})


@pytest.mark.parametrize("hole", [{}, {"per": "layer"}, {"per": "group", "groups": 2, "ends": "shared"}])
def test_a_finer_space_makes_the_same_model(hole: dict[str, Any]) -> None:
    theirs = filled(space(**hole))
    found, wanted = weights(moved(theirs, space(per="tensor"))), weights(theirs)
    assert {name: pytest.approx(values) for name, values in wanted.items()} == found


def test_a_coarser_space_takes_means() -> None:
    theirs = filled(space(per="tensor"))
    (first, *_), every = next(iter(weights(moved(theirs, space())).values())), weights(theirs)
    assert first == pytest.approx(sum(values[0] for values in every.values()) / len(every))


def test_models_are_matched_by_name_and_values_are_clipped() -> None:
    models = [{"model": "b", "parameters": {"weight": 9.0}}, {"model": "c", "parameters": {"weight": 0.3}}]
    theirs = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    ours = space()
    own = ours.initial()[ours.dimensions[0].name]
    assert set(weights(moved(theirs, ours)).values()) == {(own, 1.5)}


@pytest.mark.parametrize(
    ("changed", "wanted"), [({}, ()), ({"lambda": 0.5, "normalize": True}, ("lambda", "normalize"))]
)
def test_fixed_values_that_differ_are_named(changed: dict[str, Any], wanted: tuple[str, ...]) -> None:
    data = filled(space(per="tensor")).to_dict()
    theirs = Recipe.model_validate(data | {"parameters": data.get("parameters", {}) | changed})
    assert fixed_otherwise(*plans(space(), theirs)) == wanted
