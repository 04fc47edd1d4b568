"""Conversion to and from mergekit's YAML, as text. The materializer's tests compare the merged weights."""

import pytest
import yaml

from evosearch.checkpoints.families.llama import FAMILY
from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import from_mergekit, to_mergekit
from evosearch.recipe.schema import Recipe

SHAPE = FAMILY.shape({"num_hidden_layers": 3})
TIED = FAMILY.shape({"num_hidden_layers": 3, "tie_word_embeddings": True})


def recipe(**changes: object) -> Recipe:
    data: dict[str, object] = {
        "merge_method": "ties",
        "base_model": "org/base@rev",
        "models": [{"model": "org/a", "parameters": {"weight": [0.0, 1.0]}}],
    }
    return Recipe.model_validate(data | changes)


def exported(recipe: Recipe, **options: object) -> dict:
    return yaml.safe_load(to_mergekit(recipe, options.pop("shape", SHAPE), specs(), **options))


def test_gradients_become_one_number_a_layer_behind_explicit_ends():
    data = exported(recipe())
    assert data["base_model"] == "org/base@rev"
    assert (data["dtype"], data["out_dtype"]) == ("float32", "float32")
    assert data["models"] == [
        {"model": "org/base@rev"},
        {
            "model": "org/a",
            "parameters": {
                "weight": [
                    {"filter": "model.embed_tokens.weight", "value": 0.0},
                    {"filter": "model.norm.weight", "value": 1.0},
                    {"filter": "lm_head.weight", "value": 1.0},
                    {"value": [0.0, 0.5, 1.0]},
                ]
            },
        },
    ]
    weight = exported(recipe(), shape=TIED)["models"][1]["parameters"]["weight"]
    assert [entry.get("filter") for entry in weight] == ["model.embed_tokens.weight", "model.norm.weight", None]


def test_filters_keep_their_order_and_scalars_stay_scalars():
    weight = [{"filter": "norm", "value": [1.0, 0.0]}, {"filter": "mlp", "value": 0.3}, {"value": 0.2}]
    data = exported(recipe(models=[{"model": "org/a", "parameters": {"weight": weight, "density": 0.5}}]))
    assert data["models"][1]["parameters"] == {
        "weight": [
            {"filter": "model.norm.weight", "value": 0.0},
            {"filter": "norm", "value": [1.0, 0.5, 0.0]},
            {"filter": "mlp", "value": 0.3},
            {"value": 0.2},
        ],
        "density": 0.5,
    }


def test_switches_are_written_tensor_by_tensor():
    data = exported(recipe(parameters={"normalize": [True, False, False]}))
    normalize = {entry["filter"]: entry["value"] for entry in data["parameters"]["normalize"]}
    assert normalize.keys() == SHAPE.by_name.keys()
    assert normalize["model.layers.0.mlp.up_proj.weight"] is True
    assert normalize["model.layers.1.mlp.up_proj.weight"] is False


def test_an_unlisted_base_of_linear_is_written_with_no_weight():
    models = [{"model": "org/a", "parameters": {"weight": 1.0}}]
    assert exported(recipe(merge_method="linear", models=models))["models"][0] == {
        "model": "org/base@rev",
        "parameters": {"weight": 0.0},
    }
    data = exported(recipe(merge_method="linear", models=models, base_model=None))
    assert data["base_model"] == "org/a"  # otherwise mergekit picks an arbitrary one
    assert [entry["model"] for entry in data["models"]] == ["org/a"]


def test_references_stay_and_foreign_ones_are_named_or_replaced():
    zoo = recipe(base_model="zoo:tiny/base", models=[{"model": "/models/a", "parameters": {"weight": 1}}])
    text = to_mergekit(zoo, SHAPE, specs())
    assert "# mergekit cannot resolve these references; replace them with folders: zoo:tiny/base\n" in text
    text = to_mergekit(zoo, SHAPE, specs(), {"zoo:tiny/base": "/models/base"})
    assert "cannot resolve" not in text
    assert yaml.safe_load(text)["base_model"] == "/models/base"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"merge_method": "fisher"},
            r"mergekit has no equivalent of the method 'fisher'.*Export the merged checkpoint instead",
        ),
        ({"parameters": {"sign_method": "count"}}, r"mergekit's ties has no 'sign_method' other than 'magnitude'"),
        (
            {"merge_method": "slerp", "models": [{"model": "org/a"}], "parameters": {"t": 0.5, "norm": "match"}},
            r"mergekit's slerp has no 'norm' other than 'keep'",
        ),
        (
            {"merge_method": "passthrough", "models": [{"model": "org/a"}]},
            r"recipe\.base_model: mergekit's passthrough would merge it",
        ),
        ({"base_model": "/models/a@b"}, "read part of '/models/a@b' as an adapter or a revision"),
        (
            {
                "merge_method": None,
                "base_model": None,
                "models": [],
                "routing": {"hops": [{"model": "a", "layer": 0}, {"model": "b", "layer": 0}]},
            },
            r"recipe\.routing\.hops\[1\]\.model: mergekit would take final norm and head from 'b'",
        ),
    ],
)
def test_what_mergekit_cannot_express_is_refused_by_name(changes, message):
    with pytest.raises(RecipeError, match=message):
        to_mergekit(recipe(**changes), SHAPE, specs())


def test_biases_that_mergekit_would_drop_are_refused():
    with pytest.raises(RecipeError, match="mergekit drops the biases of LlamaForCausalLM"):
        to_mergekit(recipe(), FAMILY.shape({"num_hidden_layers": 3, "attention_bias": True}), specs())


def test_values_that_mergekit_implies_are_left_out():
    data = exported(
        recipe(parameters={"sign_method": "magnitude", "trim_scope": "tensor", "int8_mask": True, "lambda": 0.5})
    )
    assert data["parameters"] == {"lambda": 0.5}


def test_a_mergekit_file_is_read():
    text = """
    models:
      - model: org/a
        parameters: {weight: {filter: mlp, value: 0.5}}
    merge_method: ties
    base_model: org/base
    parameters: {weight: 1e-1, int8_mask: true}
    dtype: bfloat16
    """
    made = from_mergekit(text, "merge.yaml", specs())
    assert made.models[0].parameters["weight"] == [{"filter": "mlp", "value": 0.5}]
    assert made.parameters["weight"] == 0.1
    assert (made.dtype, made.output_dtype) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("changes", [{}, {"parameters": {"density": 0.4, "lambda": [0.5, 1.0]}}])
def test_written_settings_have_the_same_values(changes):
    once = to_mergekit(recipe(**changes), SHAPE, specs())
    again = to_mergekit(from_mergekit(once, "merge.yaml", specs()), SHAPE, specs())
    assert yaml.safe_load(again) == yaml.safe_load(once)


def test_a_base_that_mergekit_would_average_in_is_listed():
    text = "{merge_method: linear, base_model: b, models: [{model: a}], parameters: {weight: 1}}"
    made = from_mergekit(text, "merge.yaml", specs())
    assert [entry.model for entry in made.models] == ["a", "b"]
    text = "{merge_method: linear, base_model: b, modules: {default: {models: [{model: a}], parameters: {weight: 1}}}}"
    assert [entry.model for entry in from_mergekit(text, "merge.yaml", specs()).modules["default"].models] == ["a", "b"]
    sliced = "{merge_method: linear, base_model: b, slices: [{sources: [{model: a, layer_range: [0, 1]}]}]}"
    assert from_mergekit(sliced, "merge.yaml", specs()).parents == ("a",)  # mergekit does not add it to slices
    text = "{merge_method: linear, base_model: b, models: [{model: a, parameters: {weight: 1}}]}"
    with pytest.raises(RecipeError, match="mergekit averages base_model in, and it has no weight"):
        from_mergekit(text, "merge.yaml", specs())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{merge_method: ties, models: [{model: a}], density: 1}", r"merge\.yaml: density: unknown key"),
        ("{merge_method: ties, slices: []}", r"merge\.yaml: models is missing or empty"),
        ("{merge_method: ties, models: [{model: a, parameters: {weight: {vale: 1}}}]}", r"vale: unknown key"),
        ("[", r"merge\.yaml: invalid YAML"),
    ],
)
def test_a_malformed_file_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        from_mergekit(text, "merge.yaml", specs())
