"""The space of routes: slots and layers, the start at the first model's own pass, bounded routes."""

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evosearch.documents import parse
from evosearch.errors import InputError, RecipeError
from evosearch.recipe.checks import check
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import ModelShape
from evosearch.search.baselines import baselines
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.space.dimensions import Genome
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.template import frame

A, B = "org/a", "/models/night's b@1"
DEPTHS = {A: 4, B: 3}
WHERE = "night.yaml: recipe"
SHAPE = ModelShape("LlamaForCausalLM", 4, ())


def template(**changes: Any) -> dict[str, Any]:
    hole = {"search": True, "models": [A, B], "repeats": 2} | changes
    return {"routing": {key: value for key, value in hole.items() if value is not None}}


def space(depths: Mapping[str, int] = DEPTHS, beside: Mapping[str, Any] | None = None, **changes: Any) -> SearchSpace:
    return SearchSpace.from_template(template(**changes) | dict(beside or {}), SHAPE, {}, WHERE, depths)


def hops(recipe: Recipe) -> list[tuple[str, int]]:
    assert recipe.routing is not None
    return [(hop.model, hop.layer) for hop in recipe.routing.hops]


def scales(recipe: Recipe) -> list[float]:
    assert recipe.routing is not None
    return [hop.scale for hop in recipe.routing.hops]


def taking(laid_out: SearchSpace, *keys: str) -> Genome:
    """Genome of only these and the kept slots, with every scale 1."""
    genome = {d.name: d.init for d in laid_out.dimensions}
    for dimension in laid_out.dimensions:
        if dimension.name.startswith("include["):
            given = dimension.name.removeprefix("include[").removesuffix("]") in keys
            genome[dimension.name] = given if dimension.choices else float(given)
    return genome


OWN_PASS = [(A, layer) for layer in range(4)]
ONE_REPEAT = [*OWN_PASS, (B, 0), (B, 1), (B, 2)]
EVERY_SLOT = [*ONE_REPEAT, *ONE_REPEAT, (A, 3)]


@pytest.mark.parametrize("encoding", ["categorical", "threshold"])
@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 0), (2, 1), (2, 2), (4, 0), (1, 3)])
def test_it_starts_from_the_first_models_own_pass(encoding: str, first: int, last: int) -> None:
    laid_out = space(encoding=encoding, keep_first=first, keep_last=last)
    recipe = laid_out.fill(laid_out.initial())
    assert hops(recipe) == OWN_PASS
    assert scales(recipe) == [1.0] * 4
    assert check(recipe, {}, WHERE) == []


def test_every_slot_is_a_layer_in_order_and_has_a_name() -> None:
    laid_out = space(max_hops=15)
    whole = {d.name: True if d.choices else 1.0 for d in laid_out.dimensions}
    assert hops(laid_out.fill(whole)) == EVERY_SLOT
    names = [dimension.name for dimension in laid_out.dimensions]
    assert names[:4] == ["include[1 a:1]", "scale[1 a:1]", "include[1 a:2]", "scale[1 a:2]"]
    assert names[6:8] == ["include[1 night_s_b_1:0]", "scale[1 night_s_b_1:0]"]
    assert names[-3:] == ["include[2 night_s_b_1:2]", "scale[2 night_s_b_1:2]", "scale[end a:3]"]
    assert len(names) == len(set(names)) == 2 * 13 + 1
    assert not any(mark in name for name in names for mark in ",'@/")


def test_each_dimension_moves_its_own_slot() -> None:
    laid_out = space(max_hops=15)
    alone = {
        name: hops(laid_out.fill(taking(laid_out, name.removeprefix("include[").removesuffix("]"))))
        for name in (d.name for d in laid_out.dimensions if d.choices)
    }
    assert [route[1] for route in alone.values()] == EVERY_SLOT[1:-1]
    assert all(route == [(A, 0), route[1], (A, 3)] for route in alone.values())
    whole = {d.name: True if d.choices else 1.0 for d in laid_out.dimensions}
    for index, dimension in enumerate(d for d in laid_out.dimensions if not d.choices):
        wanted = [1.0] * 15
        wanted[index + 1] = 1.25
        assert scales(laid_out.fill(whole | {dimension.name: 1.25})) == wanted


def test_kept_layers_have_a_scale_except_the_first_hop() -> None:
    laid_out = space(keep_first=2, keep_last=2)
    kept = [d.name for d in laid_out.dimensions if d.parameter == "scale" and d.active_if is None]
    assert kept == ["scale[1 a:1]", "scale[end a:2]", "scale[end a:3]"]
    assert "scale[1 a:0]" not in {d.name for d in laid_out.dimensions}


def test_a_scale_is_active_only_if_its_slot_is_included() -> None:
    laid_out = space()
    free = [d for d in laid_out.dimensions if d.parameter == "scale" and d.active_if is not None]
    assert [d.active_if for d in free] == [(d.name.replace("scale", "include"), (True,)) for d in free]
    assert all(d.log and (d.low, d.high, d.init) == (0.5, 2.0, 1.0) for d in free)
    genome = laid_out.initial() | {"include[1 a:1]": False, "scale[1 a:1]": 1.7}
    assert laid_out.clip(genome)["scale[1 a:1]"] == 1.0
    assert laid_out.fill(laid_out.clip(genome)) == laid_out.fill(genome)
    assert all(d.active_if is None for d in space(encoding="threshold").dimensions)


def test_a_number_as_scale_is_not_searched() -> None:
    laid_out = space(scale=1.0)
    assert {d.parameter for d in laid_out.dimensions} == {"include"}
    assert scales(laid_out.fill(laid_out.initial())) == [1.0] * 4


@pytest.mark.parametrize(("repeats", "free"), [(1, 6), (2, 13), (10, 69)])
def test_a_first_draw_differs_in_about_two_slots(repeats: int, free: int) -> None:
    inclusions = [d for d in space(repeats=repeats).dimensions if d.parameter == "include"]
    assert len(inclusions) == free
    assert {d.doubt for d in inclusions} == {min(0.5, 2 / free)}
    published = [d for d in space(repeats=repeats, encoding="threshold").dimensions if d.parameter == "include"]
    draw = random.Random(1)
    flips = [
        sum((draw.gauss(float(d.init), 1 / 6) > 0.5) != (float(d.init) > 0.5) for d in published) for _ in range(2000)
    ]
    assert sum(flips) / 2000 == pytest.approx(min(2.0, free / 4), abs=0.15)


def test_a_route_that_is_too_long_loses_its_last_free_slots_and_keeps_its_end() -> None:
    laid_out = space()  # at most 8 hops: twice the first model's depth
    whole = {d.name: True if d.choices else 1.0 for d in laid_out.dimensions}
    assert hops(laid_out.fill(whole)) == [*EVERY_SLOT[:7], (A, 3)]
    laid_out = space(max_hops=6, keep_last=2)
    whole = {d.name: True if d.choices else 1.0 for d in laid_out.dimensions}
    assert hops(laid_out.fill(whole)) == [*EVERY_SLOT[:4], (A, 2), (A, 3)]
    genome = taking(laid_out, "1 a:1", "2 a:0", "2 a:1", "2 a:2")
    assert hops(laid_out.fill(genome)) == [(A, 0), (A, 1), (A, 0), (A, 1), (A, 2), (A, 3)]


def test_scales_are_clipped_at_the_bound() -> None:
    laid_out = space(max_gain=3.0)
    genome = laid_out.initial() | {"scale[1 a:1]": 2.0, "scale[1 a:2]": 2.0, "scale[end a:3]": 0.5}
    recipe = laid_out.fill(genome)
    assert scales(recipe) == [1.0, 2.0, 1.5, 0.5]
    assert recipe.routing is not None
    assert recipe.routing.divisors() == (1.0, 2.0, 3.0, 1.5)
    assert recipe.routing.max_gain == 3.0
    low = laid_out.fill(laid_out.initial() | dict.fromkeys(["scale[1 a:1]", "scale[1 a:2]", "scale[end a:3]"], 0.5))
    assert low.routing is not None
    assert low.routing.divisors() == pytest.approx([1.0, 0.5, 1 / 3, 1 / 3], rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    encoding=st.sampled_from(["categorical", "threshold"]),
    repeats=st.integers(1, 4),
    most=st.integers(5, 30),
    gain=st.floats(1.01, 50.0),
    high=st.floats(1.0, 30.0),
)
def test_every_genome_is_a_route_in_bounds(
    seed: int, encoding: str, repeats: int, most: int, gain: float, high: float
) -> None:
    laid_out = space(
        encoding=encoding, repeats=repeats, max_hops=most, max_gain=gain, scale={"low": 0.05, "high": high}
    )
    draw = random.Random(seed)
    genome: Genome = {
        d.name: draw.choice(d.choices) if d.choices else d.from_unit(draw.choice([0.0, 1.0, draw.random()]))
        for d in laid_out.dimensions
    }
    recipe = laid_out.fill(laid_out.clip(genome))
    assert check(recipe, {}, WHERE) == []
    assert 2 <= len(hops(recipe)) <= most
    assert hops(recipe)[0] == (A, 0)
    assert hops(recipe)[-1] == (A, 3)
    assert recipe.routing is not None
    for scale, divisor in zip(scales(recipe), recipe.routing.divisors(), strict=True):
        assert 0.05 - 1e-9 <= scale <= high + 1e-9
        assert abs(math.log(divisor)) <= math.log(gain) + 1e-9
    again = Recipe.model_validate(parse(recipe.to_yaml(), "", RecipeError))
    assert again == recipe


def test_the_recipe_keeps_the_other_keys_of_a_route() -> None:
    laid_out = space(beside={"out_dtype": "bfloat16", "seed": 4})
    recipe = laid_out.fill(laid_out.initial())
    assert (recipe.output_dtype, recipe.seed) == ("bfloat16", 4)


def test_only_few_genomes_are_checked_beforehand_and_they_reach_every_layer() -> None:
    laid_out = space(repeats=60, max_hops=500)
    corners = [laid_out.fill(genome) for genome in laid_out.corners()]
    assert len(corners) == 4
    assert {hop for recipe in corners for hop in hops(recipe)} == set(EVERY_SLOT)
    assert hops(corners[0]) == OWN_PASS
    assert hops(corners[1]) == [(A, 0), (A, 3)]


def test_names_that_end_alike_are_numbered() -> None:
    models = ["/night/a", "/day/a", "zoo:tiny/a", "b"]
    names = {
        d.name.partition(" ")[2].partition(":")[0] for d in space(dict.fromkeys(models, 2), models=models).dimensions
    }
    assert names == {"a~0", "a~1", "a~2", "b"}


def test_a_route_sets_no_weights() -> None:
    laid_out = space()
    assert not laid_out.has_weights
    assert laid_out.with_weight([0.2, 0.8]) == laid_out.initial()


@pytest.mark.parametrize(
    ("name", "changes"), [("random", {}), ("random", {"encoding": "threshold"}), ("cma_es", {"encoding": "threshold"})]
)
def test_optimizers_propose_routes(name: str, changes: dict[str, Any]) -> None:
    laid_out = space(**changes)
    asked = create(OptimizerConfig(name=name), laid_out.dimensions, laid_out.initial()).ask(12)
    routes = {tuple(hops(laid_out.fill(genome))) for genome in asked}
    assert len(routes) > 1
    assert all(route[0] == (A, 0) and route[-1] == (A, 3) for route in routes)


def test_cma_es_does_not_support_categoricals() -> None:
    laid_out = space()
    with pytest.raises(InputError, match=r"optimizer\.name: cma_es takes only numbers, but include\[1 a:1\]"):
        create(OptimizerConfig(name="cma_es"), laid_out.dimensions, laid_out.initial())


def test_the_frame_names_every_model_once_the_first_one_first() -> None:
    recipe = frame(template(models=[B, A]) | {"dtype": "bfloat16"}, WHERE)
    assert hops(recipe) == [(B, 0), (A, 0)]
    assert recipe.references() == (B, A)
    assert recipe.output_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": None}, r"models: missing"),
        ({"models": []}, r"models: .*at least 1"),
        ({"models": [A, A]}, rf"models\[1\]: '{A}' is named twice\. Name each model once"),
        ({"models": [A, {"choices": [A, B]}]}, r"models\[1\]: .*string"),
        ({"mdoels": [A]}, r"mdoels: unknown key\. .*Did you mean 'models'"),
        ({"search": False}, r"search: .*True, got False"),
        ({"search": None}, r"search: missing"),
        ({"hops": [{"model": A, "layer": 0}]}, r"hops: unknown key\. Known keys here: search, models"),
        ({"repeats": 0}, r"repeats: .*greater than or equal to 1, got 0"),
        ({"repeats": 1.5}, r"repeats: .*integer.*1\.5"),
        (
            {"repeats": 10**12},
            r"repeats: got 1000000000000, .*too many slots with 7 layers.*At most 10000 slots",
        ),
        ({"keep_first": 0}, r"keep_first: .*got 0"),
        ({"keep_first": 5}, rf"keep_first: .*6 layers, but '{A}' has 4"),
        ({"keep_last": 4}, rf"keep_last: .*5 layers, but '{A}' has 4"),
        ({"keep_last": -1}, r"keep_last: .*got -1"),
        ({"max_hops": 3}, rf"max_hops: got 3\. At least 4, because .* the 4 layers of '{A}'"),
        ({"max_hops": 4, "keep_last": 3}, r"max_hops: got 4, which the kept layers use up.*At least 5"),
        ({"max_hops": True}, r"max_hops: got True\. A whole number"),
        ({"max_gain": 0.9}, r"max_gain: .*got 0\.9"),
        ({"max_gain": math.inf}, r"max_gain: .*got inf"),
        ({"max_gain": 1}, r"max_gain: got 1 with a searched scale"),
        ({"encoding": "binary"}, r"encoding: .*'categorical' or 'threshold', got 'binary'"),
        ({"scale": 0.9}, r"scale: got 0\.9\. 1\.0 \(scales are not searched\), or \{low, high\}"),
        ({"scale": "wide"}, r"scale: got 'wide'\. A number"),
        ({"scale": {"low": 0.5, "hihg": 2.0}}, r"scale\.hihg: unknown key.*'high'"),
        ({"scale": {"low": 0.0}}, r"scale\.low: .*greater than 0, got 0"),
        ({"scale": {"low": 1.2, "high": 2.0}}, r"scale\.low: got 1\.2\. low at most 1 and high at least 1"),
        ({"scale": {"low": 0.1, "high": 0.9}}, r"scale\.high: got 0\.9\. low at most 1"),
        ({"scale": {"low": 1.0, "high": 1.0}}, r"scale\.low: got 1\. Less than high, which is 1"),
        ({"scale": {"low": 0.5, "high": math.nan}}, r"scale\.high: .*nan"),
    ],
)
def test_a_mistake_is_refused_with_file_and_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^night\.yaml: recipe\.routing\.{said}"):
        space(**changes)


def test_a_route_with_nothing_to_search_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^night\.yaml: recipe\.routing: nothing to search: all layers are kept"):
        space(models=[A], repeats=1, keep_first=4, keep_last=0, scale=1.0)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"merge_method": "linear"}, r"merge_method: not valid in a search over routes"),
        ({"models": [{"model": A}]}, r"models: not valid in a search over routes"),
        ({"parameters": {"weight": {"low": 0, "high": 1}}}, r"parameters: not valid in a search over routes"),
        ({"base_model": A}, r"base_model: not allowed with routing"),
        ({"chat_template": "chatml"}, r"chat_template: not allowed with routing"),
        (
            {"seed": {"low": 0, "high": 9}},
            r"seed: a hole is not allowed here\. In a search over routes only routing",
        ),
        ({"seed": {"choices": [1, 2]}}, r"seed: a hole is not allowed here"),
        ({"out_dtype": "float8"}, r"out_dtype: "),
    ],
)
def test_keys_that_are_not_valid_with_a_route_are_refused_by_name(beside: dict[str, Any], said: str) -> None:
    for lay_out in (lambda: space(beside=beside), lambda: frame(template() | beside, WHERE)):
        with pytest.raises(RecipeError, match=rf"^night\.yaml: recipe\.{said}"):
            lay_out()


def test_a_hole_inside_of_hops_is_refused() -> None:
    hop = {"model": A, "layer": 0, "scale": {"low": 0.5, "high": 2.0}}
    said = r"^night\.yaml: recipe\.routing\.hops\[0\]\.scale: a hole is not allowed here\. .* and as routing"
    with pytest.raises(RecipeError, match=said):
        SearchSpace.from_template({"routing": {"hops": [hop]}}, SHAPE, {}, WHERE)


def test_a_route_without_a_hole_is_nothing_to_search() -> None:
    with pytest.raises(RecipeError, match=r"^night\.yaml: recipe: nothing to search"):
        SearchSpace.from_template({"routing": {"hops": [{"model": A, "layer": 0}]}}, SHAPE, {}, WHERE)


# --- baselines -----------------------------------------------------------------------------------------------------

FRAME = frame(template(), WHERE)


def listed(**arguments: Any) -> dict[str, tuple[list[str] | None, str | None]]:
    """Baseline → its models without the base, and why it was skipped."""
    return {
        baseline.name: (
            [entry.model for entry in baseline.recipe.models] if baseline.recipe else None,
            baseline.skipped,
        )
        for baseline in baselines(FRAME, (0.3,), **arguments)
    }


def test_baselines_of_a_route_are_its_models_and_their_average() -> None:
    assert listed() == {
        "base": (None, "a route has no base_model, and baselines.base_model is not set"),
        "parent:0": ([A], None),
        "parent:1": ([B], None),
        "uniform": ([A, B], None),
        "scale:0.30": (None, "task arithmetic needs a base_model"),
    }
    mixed = "the models have different layers"
    found = listed(alike=False, base="base")
    assert (found["base"], found["uniform"], found["scale:0.30"]) == ((["base"], None), (None, mixed), (None, mixed))


def test_a_base_for_baseline_adds_it_and_the_sweep() -> None:
    found = listed(base="base")
    assert found["base"] == (["base"], None)
    assert found["scale:0.30"] == ([A, B], None)
    sweep = next(baseline.recipe for baseline in baselines(FRAME, (0.3,), base="base") if baseline.kind == "scale")
    assert sweep is not None
    assert (sweep.merge_method, sweep.base_model) == ("task_arithmetic", "base")
    found = listed(base=A)  # a model of the route is not a parent if it is the base
    assert "parent:1" not in found
    assert (found["parent:0"], found["uniform"][1], found["scale:0.30"]) == (
        ([B], None),
        "there is only one parent",
        ([B], None),
    )


def test_other_models_for_baseline_are_averaged_and_parents_too() -> None:
    found = listed(base="base", models=("c", A, "base"))
    assert {name: made for name, (made, _) in found.items()} == {
        "base": ["base"],
        "parent:0": [A],
        "parent:1": [B],
        "parent:2": ["c"],
        "uniform": ["c", A],
        "scale:0.30": ["c", A],
    }


def test_baselines_have_weights_only_if_made_of_the_recipes_parents() -> None:
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in ("x", "y")]
    merge = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": "base", "models": models})
    found = {baseline.name: baseline.weights for baseline in baselines(merge, (0.3,), models=("y", "z"))}
    assert found == {
        "base": (0.0, 0.0),
        "parent:0": (1.0, 0.0),
        "parent:1": (0.0, 1.0),
        "parent:2": (),
        "uniform": (),
        "scale:0.30": (),
    }
    found = {baseline.name: baseline.weights for baseline in baselines(merge, (0.3,), models=("y",))}
    assert found["scale:0.30"] == (0.0, 0.3)
    parents = [c.recipe for c in baselines(merge, (0.3,), base="other") if c.kind == "parent"]
    assert [recipe.models[0].model for recipe in parents if recipe] == ["x", "y", "base"]
