"""The search space: every tensor gets the number of its hole, and errors name every mistake."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evosearch import documents
from evosearch.errors import RecipeError
from evosearch.recipe.parameters import evaluate, leaves
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import MethodSpec, ModelShape, Param, Place, Scalar, TensorSpec
from evosearch.search.space.dimensions import Dimension, Genome
from evosearch.search.space.space import SearchSpace

WEIGHT = Param(-1.0, 2.0, per_model=True)
DENSITY = Param(0.0, 1.0, default=1.0, per_model=True, strict=True, open_low=True)
LAMBDA, NORMALIZE = Param(0.0, 2.0, default=1.0), Param(kind="bool", default=True)
METHODS = {
    "linear": MethodSpec("linear", "", {"weight": WEIGHT, "normalize": NORMALIZE}, takes_base=False),
    "ties": MethodSpec(
        "ties",
        "",
        {
            "weight": WEIGHT,
            "density": DENSITY,
            "lambda": LAMBDA,
            "normalize": NORMALIZE,
            "sign_method": Param(kind="choice", default="sum", choices=("sum", "count")),
            "rounds": Param(1, 5, default=2, kind="int"),
            "free": Param(default=0.0),
        },
        needs_base=True,
    ),
    "task_arithmetic": MethodSpec("task_arithmetic", "", {"weight": WEIGHT, "lambda": LAMBDA}, needs_base=True),
    "slerp": MethodSpec("slerp", "", {"t": Param(0.0, 1.0, strict=True)}, needs_base=True, models=(1, 1)),
}  # fmt: skip


def llama(layers: int = 6, tied: bool = False, prefix: str = "model.") -> ModelShape:
    """Tensor names of a Llama-like checkpoint; without the prefix, `norm.weight` is part of layers' names too."""
    tensors = [TensorSpec(f"{prefix}embed_tokens.weight", Place.EMBEDDINGS)]
    inside = ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_norm", "post_attention_layernorm"]
    for layer in range(layers):
        tensors += [TensorSpec(f"{prefix}layers.{layer}.{name}.weight", Place.LAYER, layer) for name in inside]
    tensors.append(TensorSpec(f"{prefix}norm.weight", Place.FINAL_NORM))
    if not tied:
        tensors.append(TensorSpec("lm_head.weight", Place.HEAD))
    return ModelShape("LlamaForCausalLM", layers, tuple(tensors), tied)


def position(shape: ModelShape, tensor: TensorSpec) -> float:
    """Position of a tensor on a gradient: embeddings at its start, final norm and head at its end."""
    if tensor.layer is None:
        return 0.0 if tensor.place is Place.EMBEDDINGS else 1.0
    return tensor.layer / (shape.num_layers - 1) if shape.num_layers > 1 else 1.0


def recipe(weight: Any, **more: Any) -> dict[str, Any]:
    """A ties recipe of two models, the first with `weight`."""
    first = {"model": "org/a", "parameters": {"weight": weight}}
    second = {"model": "org/b", "parameters": {"weight": 0.5}}
    return {"merge_method": "ties", "base_model": "org/base", "models": [first, second], **more}


def space(template: Mapping[str, Any], shape: ModelShape | None = None) -> SearchSpace:
    return SearchSpace.from_template(template, shape or llama(), METHODS, "night.yaml: recipe")


def names(template: Mapping[str, Any], shape: ModelShape | None = None) -> list[str]:
    return [dimension.name for dimension in space(template, shape).dimensions]


def numbered(laid_out: SearchSpace) -> Genome:
    """A genome with a distinct value for every dimension."""
    count = len(laid_out.dimensions)
    return {d.name: d.low + (d.high - d.low) * (i + 1) / (count + 1) for i, d in enumerate(laid_out.dimensions)}


def at(filled: Recipe, tensor: TensorSpec, shape: ModelShape, parameter: str = "weight") -> Scalar | None:
    return evaluate(filled.models[0].parameters[parameter], tensor.name, position(shape, tensor))


# --- every tensor, by brute force -------------------------------------------------------------------------------------

HOLES: dict[str, dict[str, Any]] = {
    "one": {},
    "layer": {"per": "layer"},
    "group": {"per": "group", "groups": 4},
    "layer shared": {"per": "layer", "ends": "shared"},
    "group shared": {"per": "group", "groups": 4, "ends": "shared"},
}
SETTINGS: dict[str, Any] = {
    "alone": lambda hole: hole,
    "one entry": lambda hole: {"filter": "self_attn", "value": hole},
    "before": lambda hole: [{"filter": "self_attn", "value": hole}, {"value": 0.25}],
    "after": lambda hole: [{"filter": "mlp", "value": 0.25}, {"filter": "*", "value": hole}],
    "after the ends": lambda hole: [
        {"filter": "lm_head", "value": 0.25},
        {"filter": "embed_tokens", "value": [0.1, 0.2]},
        {"value": hole},
    ],
    "norms": lambda hole: [{"filter": "q_proj", "value": 0.25}, {"filter": "norm", "value": hole}, {"value": 0.75}],
    "two holes": lambda hole: [{"filter": "self_attn", "value": dict(hole)}, {"filter": "weight", "value": hole}],
}


def expected_key(hole: Mapping[str, Any], tensor: TensorSpec, shape: ModelShape) -> str:
    """Number of a hole that a tensor takes, implemented independently of the code."""
    per, layers = hole.get("per"), shape.num_layers
    if per is None:
        return ""
    separate = hole.get("ends", "separate") == "separate"
    if tensor.place is Place.EMBEDDINGS and separate:
        return "[embeddings]"
    if tensor.place in (Place.FINAL_NORM, Place.HEAD) and separate and not shape.tied_embeddings:
        return "[head]"
    layer = {Place.EMBEDDINGS: 0, Place.LAYER: tensor.layer}.get(tensor.place, layers - 1)
    assert layer is not None
    if per == "layer":
        return f"[layer {layer}]"
    bounds = [
        index for index in range(hole["groups"]) for other in range(layers) if other * hole["groups"] // layers == index
    ]
    return f"[group {bounds[layer]}]"


@pytest.mark.parametrize("shape", [llama(), llama(tied=True), llama(prefix=""), llama(1), llama(7, True, "")], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", HOLES)
def test_every_tensor_takes_its_own_number(shape: ModelShape, setting: str, kind: str) -> None:
    hole = {"low": 0.0, "high": 1.5, **HOLES[kind]}
    if "groups" in hole:
        hole["groups"] = min(4, shape.num_layers)
    written = SETTINGS[setting](hole)
    laid_out = space(recipe(written), shape)
    genome = numbered(laid_out)
    filled = laid_out.fill(genome)
    entries = written if isinstance(written, list) else [written if "value" in written else {"value": written}]
    used = set()
    for tensor in shape.tensors:
        matching = (e for e in entries if e.get("filter", "*") in ("*",) or e["filter"] in tensor.name)
        entry = next(matching, None)
        found = at(filled, tensor, shape)
        if entry is None:
            assert found is None
        elif not isinstance(entry["value"], dict):
            assert found == evaluate(entry["value"], tensor.name, position(shape, tensor))
        else:
            pattern = f"[{entry['filter']}]" if entry.get("filter", "*") != "*" else ""
            name = f"models[0].weight{pattern}{expected_key(entry['value'], tensor, shape)}"
            used.add(name)
            # one unit in the last place: a gradient with a point on every layer is still interpolated
            assert found == pytest.approx(float(genome[name]), rel=1e-12), tensor.name
            if tensor.layer is None:
                assert found == genome[name], "the ends have filters of their own, and no interpolation"
    layers = {d.name for d in laid_out.dimensions if "layer" in d.name or "group" in d.name}
    assert used >= set(genome) - layers, "no number without a tensor"


def test_the_written_form_is_mergekits() -> None:
    laid_out = space(recipe({"low": 0.0, "high": 1.0, "per": "layer"}), llama(3))
    weight = laid_out.fill(numbered(laid_out)).to_dict()["models"][0]["parameters"]["weight"]
    assert weight == [
        {"filter": "model.embed_tokens.weight", "value": pytest.approx(1 / 6)},
        {"filter": "model.norm.weight", "value": pytest.approx(5 / 6)},
        {"filter": "lm_head.weight", "value": pytest.approx(5 / 6)},
        {"filter": "*", "value": pytest.approx([2 / 6, 3 / 6, 4 / 6])},
    ]


def test_a_gradient_is_written_as_a_list_of_its_points() -> None:
    laid_out = space(
        recipe([{"filter": "mlp", "value": {"low": 0, "high": 1, "per": "gradient", "points": 3}}, {"value": 1}])
    )
    filled = laid_out.fill(numbered(laid_out)).to_dict()["models"][0]["parameters"]["weight"]
    assert filled == [{"filter": "mlp", "value": [0.25, 0.5, 0.75]}, {"value": 1}]
    alone = space(recipe({"low": 0, "high": 1, "per": "gradient", "points": 3}))
    assert alone.fill(numbered(alone)).to_dict()["models"][0]["parameters"]["weight"] == [0.25, 0.5, 0.75]


# --- dimensions -------------------------------------------------------------------------------------------------------


def test_names_are_readable() -> None:
    layer = {"low": 0.0, "high": 1.0, "per": "layer"}
    assert names(recipe(layer), llama(2)) == [
        "models[0].weight[embeddings]",
        "models[0].weight[layer 0]",
        "models[0].weight[layer 1]",
        "models[0].weight[head]",
    ]
    assert names(recipe(layer), llama(2, tied=True))[-1] == "models[0].weight[layer 1]"
    assert names(recipe(layer | {"ends": "shared"}), llama(2)) == [
        "models[0].weight[layer 0]",
        "models[0].weight[layer 1]",
    ]
    assert names(recipe({"filter": "mlp", "value": layer}), llama(1)) == ["models[0].weight[mlp][layer 0]"]
    assert names(recipe(1.0, parameters={"lambda": {"low": 0.5, "high": 1.5, "name": "scale"}})) == ["scale"]
    assert names(recipe(1.0, parameters={"lambda": {"low": 0.5, "high": 1.5}})) == ["lambda"]


def test_the_order_of_keys_in_the_file_means_nothing() -> None:
    hole = {"low": 0.1, "high": 0.9}
    one = recipe(hole, parameters={"normalize": True, "lambda": hole})
    one["models"][0]["parameters"] = {"weight": hole, "density": hole}
    other = dict(reversed(one.items()))
    other["models"] = [dict(reversed(model.items())) for model in one["models"]]
    other["models"][0] = {"parameters": {"density": hole, "weight": hole}, "model": "org/a"}
    assert names(one) == names(other) == ["lambda", "models[0].density", "models[0].weight"]


def test_a_dimension_knows_its_bounds_and_what_it_sets() -> None:
    template = recipe({"low": 0.01, "high": 1.0, "log": True}, parameters={"rounds": {"low": 1, "high": 5}})
    rounds, weight = space(template).dimensions
    assert weight == Dimension(
        "models[0].weight", "float", 0.1, 0.01, 1.0, log=True, parameter="weight", scope="models[0]"
    )
    assert rounds == Dimension("rounds", "int", 2, 1.0, 5.0, parameter="rounds", scope="")
    assert isinstance(space(template).fill({"rounds": 4, "models[0].weight": 0.5}).parameters["rounds"], int)


def test_search_true_takes_the_methods_bounds() -> None:
    true = {"search": True}
    parameters = {"lambda": true, "sign_method": true, "normalize": true, "rounds": true}
    template = recipe(true | {"per": "group", "groups": 2, "ends": "shared"}, parameters=parameters)
    template["models"][0]["parameters"]["density"] = true
    found = {d.name: (d.kind, d.low, d.high, d.choices, d.init) for d in space(template).dimensions}
    assert found == {
        "lambda": ("float", 0.0, 2.0, (), 1.0),
        "normalize": ("categorical", 0.0, 1.0, (False, True), True),
        "rounds": ("int", 1.0, 5.0, (), 2),
        "sign_method": ("categorical", 0.0, 1.0, ("sum", "count"), "sum"),
        "models[0].density": ("float", 0.01, 1.0, (), 1.0),
        "models[0].weight[group 0]": ("float", -1.0, 2.0, (), 0.5),
        "models[0].weight[group 1]": ("float", -1.0, 2.0, (), 0.5),
    }


def test_holes_of_one_name_share_one_value() -> None:
    hole = {"low": 0.0, "high": 1.0, "name": "w", "per": "group", "groups": 2}
    template = recipe(hole)
    template["models"][1]["parameters"]["weight"] = {"filter": "mlp", "value": hole}
    laid_out = space(template)
    assert [d.name for d in laid_out.dimensions] == ["w[embeddings]", "w[group 0]", "w[group 1]", "w[head]"]
    assert {(d.parameter, d.scope) for d in laid_out.dimensions if "group" in d.name} == {("weight", None)}
    filled = laid_out.fill(numbered(laid_out))
    layer = llama().by_name["model.layers.5.mlp.down_proj.weight"]
    assert at(filled, layer, llama()) == pytest.approx(0.6)
    assert evaluate(filled.models[1].parameters["weight"], layer.name, 1.0) == pytest.approx(0.6)


def test_a_chosen_method_leaves_out_foreign_parameters() -> None:
    template = recipe(
        {"low": 0.0, "high": 1.0},
        parameters={"lambda": {"low": 0.5, "high": 1.5}, "normalize": False, "int8_mask": True},
    )
    template["models"][0]["parameters"]["density"] = {"low": 0.1, "high": 1.0}
    template["models"][1]["parameters"]["density"] = 0.5
    template["merge_method"] = {"choices": ["ties", "task_arithmetic"], "init": "task_arithmetic"}
    laid_out = space(template)
    active = {d.name: d.active_if for d in laid_out.dimensions}
    assert active == {
        "merge_method": None,
        "lambda": None,
        "models[0].density": ("merge_method", ("ties",)),
        "models[0].weight": None,
    }
    genome = laid_out.initial()
    assert laid_out.fill(genome).parameters == {"lambda": 1.0, "int8_mask": True}
    assert laid_out.fill(genome).models[1].parameters == {"weight": 0.5}
    ties = laid_out.fill(genome | {"merge_method": "ties"})
    assert ties.parameters == {"lambda": 1.0, "normalize": False, "int8_mask": True}
    assert ties.models[0].parameters == {"weight": 0.5, "density": 1.0}
    clipped = laid_out.clip(genome | {"models[0].density": 0.2})
    assert clipped["models[0].density"] == 1.0, "an inactive dimension stays at its init"


def test_with_weight_sets_weights_and_nothing_else() -> None:
    template = recipe(
        {"low": 0.0, "high": 0.8, "per": "group", "groups": 2}, parameters={"lambda": {"low": 0.5, "high": 1.5}}
    )
    template["models"].insert(0, {"model": "org/base", "parameters": {"weight": 0.2}})
    template["models"][2]["parameters"] = {"weight": {"low": -1.0, "high": 2.0}, "density": {"low": 0.1, "high": 0.9}}
    laid_out = space(template)
    initial, genome = laid_out.initial(), laid_out.with_weight([1.0, 0.25])
    changed = {name: value for name, value in genome.items() if value != initial[name]}
    ends = {f"models[1].weight[{key}]": 0.8 for key in ("embeddings", "group 0", "group 1", "head")}
    assert changed == ends | {"models[2].weight": 0.25}
    assert laid_out.with_weight(0.3)["models[2].weight"] == 0.3
    assert laid_out.with_weight(9.0)["models[2].weight"] == 2.0


def test_with_weight_uses_the_mean_for_shared_numbers() -> None:
    hole = {"low": 0.0, "high": 1.0, "name": "w"}
    template = recipe(hole)
    template["models"][1]["parameters"]["weight"] = hole
    assert space(template).with_weight([0.2, 0.6]) == {"w": pytest.approx(0.4)}
    template = recipe(1.0, parameters={"weight": {"low": 0.0, "high": 1.0}})
    del template["models"][0]["parameters"]["weight"]
    assert space(template).with_weight([0.2, 0.6]) == {"weight": pytest.approx(0.4)}


# --- round trips ------------------------------------------------------------------------------------------------------

BOUNDS = st.tuples(st.floats(-5, 5), st.floats(0.01, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def dimension(draw: st.DrawFn) -> Dimension:
    low, high = draw(BOUNDS)
    if draw(st.booleans()):
        return Dimension("n", "int", round(low), low=round(low), high=round(low) + draw(st.integers(1, 9)))
    if draw(st.booleans()):
        low, high = 10.0**low, 10.0**high
        return Dimension("x", "float", low, low=low, high=high, log=True)
    return Dimension("x", "float", low, low=low, high=high)


@given(dimension(), st.floats(0, 1))
def test_unit_values_lie_within_bounds_and_come_back(one: Dimension, unit: float) -> None:
    value = one.from_unit(unit)
    assert one.contains(value)
    again = one.from_unit(one.to_unit(value))
    assert again == pytest.approx(value, rel=1e-9, abs=1e-9 * (one.high - one.low))
    assert type(again) is (int if one.kind == "int" else float)
    assert [one.from_unit(0.0), one.from_unit(1.0)] == pytest.approx([one.low, one.high])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(HOLES)), st.sampled_from(sorted(SETTINGS)), st.booleans(), st.integers(4, 9), st.randoms()
)
def test_a_filled_recipe_survives_yaml_and_is_complete(
    kind: str, setting: str, tied: bool, layers: int, random: Any
) -> None:
    laid_out = space(recipe(SETTINGS[setting]({"low": -0.5, "high": 1.5, **HOLES[kind]})), llama(layers, tied))
    genome = {d.name: d.from_unit(random.random()) for d in laid_out.dimensions}
    laid_out.validate(genome)
    assert laid_out.clip(genome) == genome
    filled = laid_out.fill(genome)
    again = documents.validate(Recipe, documents.parse(filled.to_yaml(), "x", RecipeError), "x", RecipeError)
    assert again == filled
    written = set(map(str, filled_values(filled)))
    assert {str(value) for value in genome.values()} <= written


def filled_values(filled: Recipe) -> list[Any]:
    return [value for model in filled.models for setting in model.parameters.values() for value in leaves(setting)]


def test_the_template_is_not_changed_by_filling() -> None:
    template = recipe({"low": 0.0, "high": 1.0})
    laid_out = space(template)
    first = laid_out.fill({"models[0].weight": 0.25})
    template["models"][0]["parameters"]["weight"] = "spoiled"
    assert laid_out.fill({"models[0].weight": 0.25}) == first


# --- mistakes ---------------------------------------------------------------------------------------------------------

OK = {"low": 0.0, "high": 1.0}
WEIGHT_AT = r"night\.yaml: recipe\.models\[0\]\.parameters\.weight"
MISTAKES: dict[str, tuple[Any, str]] = {
    "misspelled key": ({"low": 0, "hihg": 1}, rf"{WEIGHT_AT}\.hihg: unknown key.*Did you mean 'high'"),
    "only a misspelled key": ({"lo": 0}, rf"{WEIGHT_AT}\.lo: unknown key.*Did you mean"),
    "no bound": ({"low": 0}, rf"{WEIGHT_AT}\.high: missing"),
    "turned bounds": ({"low": 1, "high": 0}, rf"{WEIGHT_AT}\.low: got 1\. Less than high"),
    "equal bounds": ({"low": 1, "high": 1}, rf"{WEIGHT_AT}\.low: got 1\. Less than high"),
    "words": ({"low": "a", "high": 1}, rf"{WEIGHT_AT}\.low: .*number"),
    "init outside": (OK | {"init": 1.5}, rf"{WEIGHT_AT}\.init: got 1\.5\. A number in \[0, 1\]"),
    "log from zero": (OK | {"log": True}, rf"{WEIGHT_AT}\.low: got 0 with log: true"),
    "broken whole": ({"low": 0.5, "high": 2, "integer": True}, rf"{WEIGHT_AT}\.low: got 0\.5\. A whole number"),
    "too many groups": (OK | {"per": "group", "groups": 7}, rf"{WEIGHT_AT}\.groups: got 7\. At most 6"),
    "no groups": (OK | {"per": "group"}, rf"{WEIGHT_AT}\.groups: missing"),
    "groups alone": (OK | {"groups": 2}, rf"{WEIGHT_AT}\.groups: only valid with per: group"),
    "too many points": (OK | {"per": "gradient", "points": 7}, rf"{WEIGHT_AT}\.points: got 7"),
    "ends alone": (OK | {"ends": "shared"}, rf"{WEIGHT_AT}\.ends: only valid with"),
    "unknown per": (OK | {"per": "head"}, rf"{WEIGHT_AT}\.per: .*'layer', 'group', 'gradient', 'module' or 'tensor'"),
    "search and low": ({"search": True, "low": 0}, rf"{WEIGHT_AT}\.low: not valid with search"),
    "search false": ({"search": False}, rf"{WEIGHT_AT}\.search: got false"),
    "choices and low": ({"choices": [1, 2], "low": 0}, rf"{WEIGHT_AT}\.low: not valid with choices"),
    "one choice": ({"choices": [1]}, rf"{WEIGHT_AT}\.choices: 1 given"),
    "double choice": ({"choices": [1, 1.0]}, rf"{WEIGHT_AT}\.choices\[1\]: 1\.0 is given twice"),
    "init no choice": ({"choices": [1, 2], "init": 3}, rf"{WEIGHT_AT}\.init: got 3"),
    "word for a number": ({"choices": [1, "many"]}, rf"{WEIGHT_AT}: got 'many'\. A number"),
    "hole in a list": ([0.5, OK], rf"{WEIGHT_AT}\[1\]: a hole is not allowed inside a list"),
    "hole in a value's list": ({"value": [0.5, OK]}, rf"{WEIGHT_AT}\.value: a hole is not allowed inside a list"),
    "misspelled entry": ({"filtre": "mlp", "value": OK}, rf"{WEIGHT_AT}\.filtre: unknown key.*Did you mean 'filter'"),
    "no such tensor": ({"filter": "self_atn", "value": OK}, rf"{WEIGHT_AT}\.value: no tensor .* 'self_atn'"),
    "shadowed": ([{"value": 1.0}, {"filter": "mlp", "value": OK}], rf"{WEIGHT_AT}\[1\]\.value: .*earlier filters"),
    "bad name": (OK | {"name": "a[0]"}, rf"{WEIGHT_AT}\.name: "),
    "no hole": (1.0, r"night\.yaml: recipe: nothing to search"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_hole_names_the_key(case: str) -> None:
    weight, said = MISTAKES[case]
    with pytest.raises(RecipeError, match=said):
        space(recipe(weight))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"density": {"low": 0.1, "high": 1.2}}, r"density\.high: got 1\.2\. A number in \(0, 1\]"),
        ({"density": {"low": 0.0, "high": 1.0}}, r"density\.low: got 0\. A number in \(0, 1\]"),
        ({"denisty": {"low": 0.1, "high": 1.0}}, r"denisty: unknown parameter\. ties takes .*Did you mean 'density'"),
        (
            {"normalize": {"low": 0, "high": 1}},
            r"normalize\.low: this parameter is not a number\. choices: true and false",
        ),
        ({"sign_method": {"choices": ["sum", "cuont"]}}, r"sign_method: got 'cuont'.*Did you mean 'count'"),
        ({"free": {"search": True}}, r"free\.search: this parameter has no default bounds"),
        (
            {"rounds": {"low": 1, "high": 5, "per": "gradient", "points": 2}},
            r"rounds\.per: a gradient cannot",
        ),
        ({"t": 0.5}, r"t: unknown parameter"),
    ],
)
def test_a_mistake_about_a_parameter_names_it(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=r"night\.yaml: recipe\.parameters\." + said):
        space(recipe(OK, parameters=parameters))


def test_bounds_of_every_choosable_method_are_kept() -> None:
    template = recipe(1.0, parameters={"density": {"low": 0.1, "high": 1.2}})
    template["merge_method"] = {"choices": ["task_arithmetic", "ties"]}
    with pytest.raises(RecipeError, match=r"density\.high: got 1\.2"):
        space(template)
    with pytest.raises(RecipeError, match=r"parameters\.eta: unknown parameter\. task_arithmetic, ties take density"):
        space(template | {"parameters": {"eta": 1.0}})
    template = recipe(1.0) | {"merge_method": {"choices": ["ties", "slerp"]}}
    with pytest.raises(RecipeError, match=r"recipe\.models: got 2 models\. slerp takes 1"):
        space(template)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": {"low": 0, "high": 9}}, r"recipe\.seed: got .*with seeds"),
        ({"base_model": {"choices": ["a", "b"]}}, r"recipe\.base_model: a hole is not allowed here"),
        ({"merge_method": {"search": True}}, r"recipe\.merge_method: got search"),
        ({"merge_method": {"choices": ["ties", "tie"]}}, r"merge_method\.choices\[1\]: unknown method 'tie'"),
        ({"merge_method": "tise"}, r"merge_method: unknown method 'tise'.*Did you mean 'ties'"),
        ({"merge_method": None}, r"merge_method: missing"),
        ({"routing": {"search": True}}, r"recipe\.merge_method: not valid in a search over routes"),
        ({"base_model": None}, r"recipe\.base_model: missing"),
        ({"mdoels": []}, r"recipe\.mdoels: unknown key.*Did you mean 'models'"),
        ({"models": []}, r"models is missing or empty"),
        ({"models": [{"model": {"choices": ["a", "b"]}}]}, r"recipe\.models\[0\]\.model: a hole is not allowed here"),
        ({"parameters": [OK]}, r"parameters"),
        ({"models": 3}, r"recipe\.models"),
    ],
)  # fmt: skip
def test_a_mistake_elsewhere_names_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        space({**recipe(OK, parameters={"lambda": OK}), **change})


def test_holes_of_one_name_must_be_identical() -> None:
    template = recipe({"low": 0.0, "high": 1.0, "name": "w"})
    template["models"][1]["parameters"]["weight"] = {"low": 0.0, "high": 1.5, "name": "w"}
    said = r"models\[1\]\.parameters\.weight\.high: 1\.5 here and 1\.0 at night\.yaml: recipe\.models\[0\]"
    with pytest.raises(RecipeError, match=said):
        space(template)
    template = recipe({"low": 0.0, "high": 1.0, "name": "lambda"}, parameters={"lambda": OK})
    with pytest.raises(RecipeError, match=r"weight\.name: 'lambda' is already the name of the hole at"):
        space(template)


@pytest.mark.parametrize(
    ("genome", "said"),
    [
        ({}, r"models\[0\]\.weight: missing"),
        ({"models[0].weight": 1.5}, r"models\[0\]\.weight: got 1\.5\. In \[0, 1\]"),
        ({"models[0].weight": 0.5, "models[1].weight": 0.5}, "not a dimension of this search"),
        ({"models[0].weight": True}, "got True"),
    ],
)
def test_a_foreign_genome_is_refused(genome: Genome, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        space(recipe(OK)).fill(genome)


def test_an_overnight_space_is_laid_out_and_filled_quickly() -> None:
    """A deep model with holes for every layer."""
    template = {
        "merge_method": "ties",
        "base_model": "org/base@rev",
        "models": [
            {
                "model": "org/math",
                "parameters": {
                    "weight": {"low": 0.0, "high": 1.5, "per": "layer"},
                    "density": {"low": 0.1, "high": 1.0},
                },
            },
            {
                "model": "org/chat+org/chat-lora",
                "parameters": {
                    "weight": [
                        {"filter": "self_attn", "value": {"low": 0.0, "high": 1.5, "per": "group", "groups": 4}},
                        {"value": {"low": 0.0, "high": 1.5, "per": "gradient", "points": 5}},
                    ]
                },
            },
        ],
    }
    laid_out = space(template, llama(80))
    assert len(laid_out.dimensions) == 82 + 1 + 4 + 5
    assert laid_out.fill(laid_out.initial()).merge_method == "ties"
