"""Derivatives of merges in the dimensions of a search space: every method and kind of hole, in float64."""

import copy
import pickle
from dataclasses import replace
from functools import cache
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import RecipeError
from evosearch.materialize.plan import TensorOp, plan
from evosearch.merging.method_parameters import Parameters
from evosearch.merging.registry import method, specs
from evosearch.recipe.dual import Dual
from evosearch.recipe.identity import recipe_id
from evosearch.recipe.parameters import leaves
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, Param
from evosearch.search.space.dimensions import Genome
from evosearch.search.space.space import SearchSpace
from tests.merging.statistics import with_statistics

torch.set_num_threads(1)
SHAPE = FAMILY.shape({"num_hidden_layers": 3})
STEP = 1e-6
RANGES = {("nearswap", "t"): (0.1, 0.4)}  # above the largest difference, t has no effect
DIFFERENTIABLE = [name for name, spec in specs().items() if spec.differentiable]
HOLES: dict[str, Any] = {
    "plain": lambda hole: hole,
    "logarithmic": lambda hole: hole | {"log": True},
    "layer": lambda hole: hole | {"per": "layer"},
    "layer, shared ends": lambda hole: hole | {"per": "layer", "ends": "shared"},
    "group": lambda hole: hole | {"per": "group", "groups": 2},
    "gradient": lambda hole: hole | {"per": "gradient", "points": 2},
    "gradient of three points": lambda hole: hole | {"per": "gradient", "points": 3},
    "tensor": lambda hole: hole | {"per": "tensor"},
    "module": lambda hole: hole | {"per": "module"},
    "filter": lambda hole: [{"filter": "mlp", "value": hole | {"per": "gradient", "points": 2}}, {"value": 0.4}],
    "shared name": lambda hole: hole | {"per": "group", "groups": 3, "name": "w"},
}


def template(spec: MethodSpec, kind: str, **shared: Any) -> dict[str, Any]:
    """A recipe in which every differentiable parameter is a hole of one kind."""
    count = max(spec.models[0], min(3, spec.models[1] or 3))
    models: list[dict[str, Any]] = [{"model": f"m{index}", "parameters": {}} for index in range(count)]
    scopes = {
        name: [one["parameters"] for one in models] if p.per_model else [shared] for name, p in spec.parameters.items()
    }
    for name, param in spec.parameters.items():
        low, high = RANGES.get((spec.name, name)) or ((0.1, 0.9) if param.strict else (0.1, 1.5))
        for index, scope in enumerate(scopes[name]):
            if name in spec.differentiable:
                scope[name] = HOLES[kind]({"low": low, "high": high})
                if isinstance(scope[name], dict) and "name" in scope[name]:
                    scope[name]["name"] = f"{name} of all"
            elif param.open_low:
                scope[name] = 0.5 + 0.1 * index  # a density, or the share that a trim keeps
    base = {"base_model": "base"} if spec.needs_base else {}
    sample = {"sample": {"text": "texts.txt"}} if spec.statistic else {}
    return {"merge_method": spec.name, "models": models, "parameters": shared, "seed": 3} | base | sample


@cache
def weights(reference: str, tensor: str) -> Tensor:
    """A model's tensor (16, 10) in float64; each model changes some entries of the base, alone or with others.

    Of a smaller one, density and trim together leave too few entries for every number to have an effect.
    """
    base = torch.randn(16, 10, generator=torch.Generator().manual_seed(crc32(tensor.encode())), dtype=torch.float64)
    if reference == "base":
        return base
    noise = torch.Generator().manual_seed(crc32(f"{reference} {tensor}".encode()))
    changes = 0.5 * torch.randn(16, 10, generator=noise, dtype=torch.float64)
    return base + changes * (torch.rand(16, 10, generator=noise) < 0.6)


def ops_of(recipe: Recipe) -> tuple[TensorOp, ...]:
    names = recipe.references()
    contents = {name: f"{index:064x}" for index, name in enumerate(names)}
    out = FAMILY.shape({"num_hidden_layers": 4}) if recipe.slices or recipe.modules else SHAPE
    ops = plan(recipe, dict.fromkeys(names, SHAPE), out, specs(), contents)
    return tuple(replace(op, parameters=_in_float64(op)) for op in ops)


def _in_float64(op: TensorOp) -> Parameters:
    return with_statistics(specs()[op.method], inputs(op)[1], replace(op.parameters, dtype=torch.float64))


def inputs(op: TensorOp) -> tuple[Tensor | None, list[Tensor]]:
    base = None if op.base is None else weights(op.base.reference, op.base.tensor)
    return base, [weights(parent.reference, parent.tensor) for parent in op.parents]


def merged(op: TensorOp) -> Tensor:
    return method(op.method).merge(*inputs(op), op.parameters)


def slope_at(op: TensorOp) -> Tensor:
    """dL/dθ at one tensor of L = Σ ⟨c, θ⟩ + ‖θ‖²/2, with fixed random c."""
    return weights("loss", op.tensor) + merged(op)


def loss(recipe: Recipe) -> float:
    found = 0.0
    for op in ops_of(recipe):
        theta = merged(op)
        found += (weights("loss", op.tensor) * theta + theta**2 / 2).sum().item()
    return found


def gradient(recipe: Recipe, count: int) -> list[float]:
    """dL/dx for every dimension, contracted by the definition."""
    found = [0.0] * count
    for op in ops_of(recipe):
        derivative = method(op.method).derivative
        assert derivative is not None
        for name, slope in derivative(*inputs(op), op.parameters, slope_at(op)).items():
            values = op.parameters.own[name] if isinstance(slope, tuple) else (op.parameters.shared[name],)
            for value, number in zip(values, slope if isinstance(slope, tuple) else (slope,), strict=True):
                for index, term in value.terms.items() if isinstance(value, Dual) else ():
                    found[index] += number * term
    return found


def somewhere(space: SearchSpace, seed: int) -> Genome:
    units = torch.rand(len(space.dimensions), generator=torch.Generator().manual_seed(seed)).tolist()
    return {d.name: d.from_unit(0.05 + 0.9 * unit) for d, unit in zip(space.dimensions, units, strict=True)}


def check_directions(space: SearchSpace, seeds: tuple[int, ...] = (2, 3)) -> list[float]:
    """Compare the gradient with central differences in random directions, and return it."""
    genome = somewhere(space, 1)
    found = gradient(space.with_derivatives(genome), len(space.dimensions))
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(len(found), generator=generator, dtype=torch.float64).tolist()
        ends = [
            {n: value + sign * STEP * own for (n, value), own in zip(genome.items(), direction, strict=True)}
            for sign in (1.0, -1.0)
        ]
        expected = (loss(space.fill(ends[0])) - loss(space.fill(ends[1]))) / (2 * STEP)
        along = sum(f * own for f, own in zip(found, direction, strict=True))
        assert along == pytest.approx(expected, rel=1e-5, abs=1e-6)
    return found


@pytest.mark.parametrize("kind", HOLES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_agrees_with_central_differences(name: str, kind: str) -> None:
    spec = specs()[name]
    for normalize in (True, False) if "normalize" in spec.parameters else (None,):
        written = template(spec, kind, **({} if normalize is None else {"normalize": normalize}))
        space = SearchSpace.from_template(written, SHAPE, specs())
        assert space.not_differentiable() is None
        found = check_directions(space)
        assert all(found) or kind == "shared name", "equal weights that are normalized have no effect"


@pytest.mark.parametrize("form", ["slices", "modules"])
def test_agrees_in_slices_and_modules(form: str) -> None:
    hole = {"low": 0.1, "high": 1.5}

    def run(first: int, end: int) -> dict[str, Any]:
        sources = [
            {"model": name, "layer_range": [first, end], "parameters": {"weight": hole}} for name in ("m0", "m1")
        ]
        return {"sources": sources, "parameters": {"lambda": hole}}

    slices = [run(0, 2), run(1, 3)]
    recipe = {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.6}}
    recipe |= {"slices": slices} if form == "slices" else {"modules": {"default": {"slices": slices}}}
    shape = FAMILY.shape({"num_hidden_layers": 4})
    space = SearchSpace.from_template(recipe, shape, specs())
    assert len(space.dimensions) == 6
    assert all(check_directions(space))


@pytest.mark.parametrize("kind", HOLES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_merges_and_is_identified_like_the_recipe_of_plain_numbers(name: str, kind: str) -> None:
    space = SearchSpace.from_template(template(specs()[name], kind), SHAPE, specs())
    genome = somewhere(space, 1)
    plain, dual = space.fill(genome), space.with_derivatives(genome)
    assert dual == plain
    assert dual.to_yaml() == plain.to_yaml()
    inputs = {reference: f"{index:064x}" for index, reference in enumerate(plain.references())}
    inputs |= {plain.sample.key: "texts"} if plain.sample else {}
    assert recipe_id(dual, inputs) == recipe_id(plain, inputs)
    for one, other in zip(ops_of(dual), ops_of(plain), strict=True):
        assert torch.equal(merged(one), merged(other))
        numbers = [number for per_model in one.parameters.own for number in one.parameters.each(per_model)]
        numbers += [
            one.parameters[shared] for shared in specs()[name].differentiable if shared in one.parameters.shared
        ]
        assert {type(number) for number in numbers} == {float}, "methods compute with plain numbers"


def terms_of(recipe: Recipe) -> list[Any]:
    scopes = (recipe.parameters, *(one.parameters for one in recipe.models))
    found = [value for scope in scopes for setting in scope.values() for value in leaves(setting)]
    return [dict(value.terms) if isinstance(value, Dual) else None for value in found]


def test_copies_keep_the_derivatives() -> None:
    space = SearchSpace.from_template(template(specs()["ties"], "tensor"), SHAPE, specs())
    recipe = space.with_derivatives(space.initial())
    terms = terms_of(recipe)
    assert sum(term is not None for term in terms) >= len(space.dimensions)
    for other in (
        copy.copy(recipe),
        copy.deepcopy(recipe),
        pickle.loads(pickle.dumps(recipe)),
        recipe.model_copy(update={"seed": 9}),
        recipe.model_copy(deep=True),
        Recipe.model_validate(recipe.model_dump()),
    ):
        assert terms_of(other) == terms
    assert terms_of(Recipe.model_validate(recipe.to_dict())) == [None] * len(terms)


def test_says_what_has_no_derivative() -> None:
    def why(known: dict[str, MethodSpec] | None = None, **written: Any) -> str | None:
        models = [
            {"model": "a", "parameters": {"weight": {"low": 0, "high": 1}}},
            {"model": "b", "parameters": {"weight": 1}},
        ]
        recipe = {"merge_method": "ties", "base_model": "base", "models": models} | written
        return SearchSpace.from_template(recipe, SHAPE, known or specs()).not_differentiable()

    assert why() is None
    hole = {"low": 0.1, "high": 1.0}
    assert why(parameters={"density": hole}) == "'density': ties has derivatives in weight and lambda, not in density"
    assert why(merge_method={"choices": ["ties", "linear"]}) == "'merge_method' is a choice, which has no derivative"
    assert why(parameters={"normalize": {"search": True}}) == "'normalize' is a choice, which has no derivative"
    known = dict(specs())
    known["ties"] = replace(known["ties"], differentiable=())
    assert why(known) == "'models[0].weight': ties has no derivative"
    rounds = replace(
        known["ties"], parameters={**known["ties"].parameters, "rounds": Param(1, 5, default=2, kind="int")}
    )
    assert why(known | {"ties": rounds}, parameters={"rounds": {"search": True}}) == (
        "'rounds' is a whole number, which has no derivative"
    )
    route = {"routing": {"search": True, "models": ["a", "b"], "repeats": 1}}
    assert (
        SearchSpace.from_template(route, SHAPE, specs()).not_differentiable() == "a route has no derivative in its hops"
    )


def test_a_genome_outside_of_the_space_is_refused() -> None:
    space = SearchSpace.from_template(template(specs()["ties"], "plain"), SHAPE, specs())
    with pytest.raises(RecipeError, match=r"got 9\.0"):
        space.with_derivatives(space.initial() | {space.dimensions[0].name: 9.0})
