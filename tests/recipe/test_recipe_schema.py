"""Recipes: parsing, validation and identity."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evosearch import documents
from evosearch.errors import InputError, RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.identity import canonical, recipe_id
from evosearch.recipe.parameters import evaluate, lookup
from evosearch.recipe.schema import Recipe

TIES = """
merge_method: ties
base_model: org/base@main
models:
  - model: org/math
    parameters:
      weight: [0.1, 0.5, 1]
      density: {filter: self_attn, value: 0.3}
  - model: org/chat
    parameters:
      weight:
        - filter: mlp
          value: 1e-1
        - value: 0.7
parameters:
  density: 0.5
  int8_mask: true
out_dtype: bfloat16
seed: 7
"""


def read(text: str) -> Recipe:
    return documents.validate(Recipe, documents.parse(text, "r.yaml", RecipeError), "r.yaml", RecipeError)


def test_a_recipe_survives_a_round_trip() -> None:
    recipe = read(TIES)
    assert read(recipe.to_yaml()) == recipe
    assert recipe.output_dtype == "bfloat16"
    assert recipe.references() == ("org/base@main", "org/math", "org/chat")
    assert recipe.models[1].parameters["weight"][0] == {"filter": "mlp", "value": 0.1}


def test_a_parameter_named_like_a_builtin_is_refused_by_name() -> None:
    recipe = read(TIES.replace("density: 0.5\n", "parameters: 0\n"))
    assert recipe.parameters["parameters"] == 0
    assert read(recipe.to_yaml()) == recipe


def test_keys_without_effect_are_reported_and_not_hashed() -> None:
    recipe = read(TIES)
    (note,) = checks.check(recipe, specs(), "r.yaml: ")
    assert "parameters.int8_mask: has no effect" in note
    inputs = dict.fromkeys(recipe.references(), "00")
    without = recipe.model_copy(update={"parameters": {"density": 0.5}})
    assert recipe_id(recipe, inputs) == recipe_id(without, inputs)


REFUSED = [
    ("merge_method: ties\nmodels: []", r"models is missing or empty"),
    ("models: [{model: a}]", r"exactly one of merge_method and routing"),
    ("merge_method: ties\nmodels: [{modle: a}]", r"models\[0\]\.modle: unknown key.*Did you mean 'model'\?"),
    ("merge_method: ties\nmodels: [{model: a}]\nbase_modle: b", r"base_modle: unknown key.*'base_model'\?"),
    ("merge_method: ties\nmerge_method: slerp\nmodels: [{model: a}]", r"line 2: duplicate key 'merge_method'"),
    ("merge_method: ties\nmodels: [{model: a}]\ndtype: float8", r"dtype: .*'float32', 'bfloat16' or 'float16'"),
    ("merge_method: ties\nmodels: [{model: a}]\nseed: -1", r"seed: .*greater than or equal to 0.*-1"),
    ("slices: []\nmerge_method: ties", r"models is missing or empty"),
    (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: []}}]",
        r"models\[0\]\.parameters\.weight: an empty",
    ),
    ("merge_method: ties\nmodels: [{model: a, parameters: {weight: .nan}}]", r"parameters\.weight.*finite number"),
    ("merge_method: ties\nmodels: [{model: a, parameters: {weight: {valeu: 1}}}]", r"weight\.valeu: unknown key"),
    ("- a\n- b", r"got a list.*mapping"),
    ("", r"got an empty file"),
    ("a: [1", r"invalid YAML: line 1"),
    ("a: !!python/object/apply:os.system [ls]", r"invalid YAML"),
    ("routing: {hops: []}", r"routing\.hops"),
    ("routing: {hops: [{model: a, layer: -1}]}", r"routing\.hops\[0\]\.layer.*-1"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_malformed_recipes_name_file_and_key(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"(?s)^r\.yaml.*" + message):
        read(text)


def with_models(text: str) -> str:
    return text + "\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]"


SENSELESS = [
    (with_models("merge_method: tise\nbase_model: c"), r"merge_method: unknown method 'tise'.*Did you mean 'ties'\?"),
    (with_models("merge_method: ties"), r"base_model: missing"),
    (with_models("merge_method: ties\nbase_model: c\nparameters: {denisty: 1}"), r"parameters\.denisty.*'density'\?"),
    (with_models("merge_method: ties\nbase_model: c\nparameters: {density: 0}"), r"density: got 0.*\(0, 1\]"),
    (with_models("merge_method: ties\nbase_model: c\nparameters: {density: 1.5}"), r"density: got 1.5.*\(0, 1\]"),
    (with_models("merge_method: ties\nbase_model: c\nparameters: {normalize: 3}"), r"normalize: got 3.*true or false"),
    (
        with_models("merge_method: ties\nbase_model: c\nparameters: {sign_method: vote}"),
        r"sign_method: got 'vote'.*One of",
    ),
    ("merge_method: linear\nmodels: [{model: a}]", r"models\[0\]\.parameters\.weight: missing"),
    ("merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]", r"weight: got 'x'.*A number"),
    (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]",
        r"models\[1\]\.model: 'a' is listed twice",
    ),
    (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, normalize: true}}]",
        r"models\[0\]\.parameters\.normalize: not a per-model parameter",
    ),
    (
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nmodels: [{model: a}, {model: b}, {model: c}]",
        r"models: .*slerp",
    ),
]


@pytest.mark.parametrize(("text", "message"), SENSELESS, ids=range(len(SENSELESS)))
def test_semantic_errors_name_file_and_key(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"(?s)^r\.yaml: .*" + message):
        checks.check(read(text), specs(), "r.yaml: ")


def test_identity_follows_content_not_names() -> None:
    recipe = read(TIES)
    inputs = {"org/base@main": "aa", "org/math": "bb", "org/chat": "cc"}
    renamed = read(TIES.replace("org/math", "/models/math"))
    assert recipe_id(recipe, inputs) == recipe_id(
        renamed, {"org/base@main": "aa", "/models/math": "bb", "org/chat": "cc"}
    )
    assert recipe_id(recipe, inputs) != recipe_id(recipe, inputs | {"org/math": "dd"})
    whole = read(TIES.replace("0.7", "1"))
    assert canonical(whole, inputs) == canonical(read(TIES.replace("0.7", "1.0")), inputs)
    for old, new in (
        ("seed: 7", "seed: 8"),
        ("bfloat16", "float16"),
        ("0.7", "0.70001"),
        ("merge_method: ties", "merge_method: dare"),
    ):
        assert recipe_id(read(TIES.replace(old, new)), inputs) != recipe_id(recipe, inputs)


def test_identity_is_frozen() -> None:
    """Ids are stored in ledgers and exports; changing the canonical form requires a new VERSION."""
    recipe = read(TIES)
    inputs = {"org/base@main": "aa", "org/math": "bb", "org/chat": "cc"}
    assert recipe_id(recipe, inputs) == "994fec2e55f2ee45803be6e1cc6cbe12cce5bd4157da22229d2a73c147179b8d"


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(0, 1))
def test_gradients_interpolate_linearly(values: list[float], position: float) -> None:
    import numpy as np

    expected = np.interp(position, np.linspace(0, 1, len(values)) if len(values) > 1 else [0.0], values)
    assert evaluate(values, "model.layers.0.x", position) == pytest.approx(float(expected), abs=1e-9)


def test_first_match_wins_and_no_match_falls_through() -> None:
    own: dict[str, Any] = {"weight": [{"filter": "self_attn", "value": 0.1}, {"filter": "attn", "value": 0.2}]}
    shared: dict[str, Any] = {"weight": [{"filter": "mlp", "value": [0.0, 1.0]}]}
    scopes = (own, shared)
    assert lookup("weight", scopes, "model.layers.3.self_attn.q_proj.weight", 0.5) == 0.1
    assert lookup("weight", scopes, "model.layers.3.mlp.up_proj.weight", 0.25) == 0.25
    assert lookup("weight", scopes, "model.norm.weight", 1.0) is None


def test_relative_folders_are_taken_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipes" / "r.yaml"
    file.parent.mkdir()
    file.write_text(
        "merge_method: linear\n"
        "models: [{model: ../models/a, parameters: {weight: 1}}, {model: org/b, parameters: {weight: 1}}]"
    )
    recipe = files.load(file)
    assert recipe.references() == (str(tmp_path / "models" / "a"), "org/b")


def test_missing_file_and_invalid_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        files.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match="not UTF-8"):
        files.load(tmp_path / "binary.yaml")


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "models", "weight", "filter", "value", "parameters", "merge_method", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["merge_method", "base_model", "models", "parameters", "dtype", "seed", "routing", "zz"]),
        YAML,
        max_size=5,
    )
)
def test_any_input_is_accepted_or_raises_our_errors(data: dict[str, Any]) -> None:
    try:
        recipe = documents.validate(Recipe, data, "r.yaml", RecipeError)
        checks.check(recipe, specs(), "r.yaml: ")
    except InputError as exc:
        message = str(exc)
    else:
        return
    assert message.startswith("r.yaml")
