"""Routes in recipes: validation, resolution of references, and identity."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.hops import Hop, Routing
from evosearch.recipe.identity import canonical, recipe_id
from evosearch.recipe.schema import Recipe

HOPS = [{"model": "a", "layer": 0}, {"model": "b", "layer": 7, "scale": 0.5}, {"model": "a", "layer": 1, "scale": 3.0}]
INPUTS = {"a": "00", "b": "11"}


def route(hops: list[dict[str, Any]] = HOPS, max_gain: float | None = None, **others: Any) -> Recipe:
    routing: dict[str, Any] = {"hops": hops} | ({} if max_gain is None else {"max_gain": max_gain})
    return documents.validate(Recipe, {"routing": routing, **others}, "r.yaml", RecipeError)


def scaled(*scales: float) -> list[dict[str, Any]]:
    return [{"model": "a", "layer": index, "scale": scale} for index, scale in enumerate(scales)]


def test_a_route_is_in_order_and_names_its_models_in_order() -> None:
    recipe = route(out_dtype="bfloat16")
    assert checks.check(recipe, specs(), "r.yaml: ") == []
    assert recipe.references() == recipe.parents == ("a", "b")
    assert recipe.routing is not None
    assert recipe.routing.divisors() == (1.0, 0.5, 1.5)
    assert Recipe.model_validate(documents.parse(recipe.to_yaml(), "", RecipeError)) == recipe


@pytest.mark.parametrize(
    ("scales", "max_gain", "refused"),
    [
        ((2.0, 2.0, 2.0), None, None),
        ((2.0, 2.0, 2.0, 1.01), None, (3, 8.08, r"\[0\.125, 8\]")),
        ((2.0, 2.0, 2.5, 0.1), None, (2, 10.0, r"\[0\.125, 8\]")),
        ((0.5, 0.5, 0.5), None, None),
        ((0.5, 0.5, 0.4), None, (2, 0.1, r"\[0\.125, 8\]")),
        ((0.5, 0.5, 0.4), 10.0, None),
        ((1.0, 1.5), 1.2, (1, 1.5, r"\[0\.833333, 1\.2\]")),
        ((1e-300, 1e-300), None, (0, 1e-300, r"\[0\.125, 8\]")),
        (tuple([8.0 ** (1 / 7)] * 7), None, None),  # 8 up to rounding
        (tuple([8.0 ** (-1 / 7)] * 7), None, None),
    ],
)
def test_the_product_of_scales_is_bounded_at_every_hop(
    scales: tuple[float, ...], max_gain: float | None, refused: tuple[int, float, str] | None
) -> None:
    recipe = route(scaled(*scales), max_gain)
    if refused is None:
        assert checks.check(recipe, specs(), "r.yaml: ") == []
        return
    index, product, allowed = refused
    said = rf"^r\.yaml: routing\.hops\[{index}\]\.scale: got {scales[index]:g}; .* is {product:g}\. "
    said += f"The product must be in {allowed}"
    with pytest.raises(RecipeError, match=said):
        checks.check(recipe, specs(), "r.yaml: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_model", "a"),
        ("tokenizer_source", "union"),
        ("tokenizer", {"source": "a"}),
        ("chat_template", "chatml"),
    ],
)
def test_keys_of_a_routes_first_model_cannot_be_set(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^r\.yaml: {key}: not allowed with routing\. .*first hop's model"):
        checks.check(route(**{key: value}), specs(), "r.yaml: ")


def test_a_seed_without_effect_is_noted() -> None:
    (note,) = checks.check(route(seed=3), specs(), "r.yaml: ")
    assert note.startswith("r.yaml: seed: has no effect on a route")


@pytest.mark.parametrize("bad", [0.5, 1e7, math.inf])
def test_an_invalid_bound_is_refused(bad: float) -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml: routing\.max_gain: "):
        route(max_gain=bad)


def test_the_name_of_a_route_follows_its_hops_and_not_its_bound() -> None:
    one = recipe_id(route(), INPUTS)
    assert recipe_id(route(max_gain=100.0), INPUTS) == one
    assert recipe_id(route([{"scale": 1} | hop for hop in HOPS]), INPUTS) == one
    renamed = [hop | {"model": {"a": "x", "b": "y"}[hop["model"]]} for hop in HOPS]
    assert recipe_id(route(renamed), {"x": "00", "y": "11"}) == one
    others = [[*HOPS[:2], HOPS[2] | change] for change in ({"layer": 2}, {"scale": 2.5}, {"model": "b"})]
    others += [HOPS[:2], [HOPS[0], HOPS[2], HOPS[1]]]
    assert len({one, *(recipe_id(route(hops), INPUTS) for hops in others)}) == 6
    assert '"routing":[["00",0,1.0],["11",7,0.5],["00",1,3.0]]' in canonical(route(), INPUTS)


def test_relative_references_of_a_route_are_of_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(
        "name: inner\nrouting: {hops: [{model: ./a, layer: 0}]}\n---\n"
        "routing: {hops: [{model: inner, layer: 0}, {model: ../b+./c, layer: 1}, {model: org/d, layer: 2}]}\n"
    )
    found = files.load(tmp_path / "night.yaml").references()
    assert found == (f"{tmp_path}/night.yaml#inner", f"{tmp_path.parent}/b+{tmp_path}/c", "org/d")


def test_relative_references_of_a_routing_hole_are_too(tmp_path: Path) -> None:
    raw = {"routing": {"search": True, "models": ["./a", "org/b", "first.yaml", "stage:merged", 3]}}
    found = files.anchor(raw, tmp_path, {"stage:merged": "/runs/merged.yaml"})
    wanted = [f"{tmp_path}/a", "org/b", f"{tmp_path}/first.yaml", "/runs/merged.yaml", 3]
    assert found == {"routing": {"search": True, "models": wanted}}
    assert raw["routing"]["models"][0] == "./a"


def test_models_of_a_merge_are_anchored_as_before(tmp_path: Path) -> None:
    raw = {"models": [{"model": "./a", "parameters": {"weight": ["./b", 1.0]}}], "base_model": "../c"}
    found = files.anchor(raw, tmp_path)
    assert found["models"] == [{"model": f"{tmp_path}/a", "parameters": {"weight": ["./b", 1.0]}}]


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=40))
def test_divisors_are_the_running_products(scales: list[float]) -> None:
    routing = Routing(hops=tuple(Hop(model="a", layer=0, scale=scale) for scale in scales))
    wanted = [math.exp(math.fsum(map(math.log, scales[: k + 1]))) for k in range(len(scales))]
    assert routing.divisors() == pytest.approx(wanted, rel=1e-9)
