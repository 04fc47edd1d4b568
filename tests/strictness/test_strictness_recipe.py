"""Each mistake in a recipe is one error that names the file, the key, what is allowed and the closest known name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evosearch.errors import InputError, RecipeError
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.recipe.identity import TOKENIZER_OF, canonical
from evosearch.recipe.schema import NO_EFFECT, Recipe
from evosearch.search.progress import Silent
from evosearch.setup.models import open_models

Change = Callable[[dict[str, Any]], object]


def whole() -> dict[str, Any]:
    """A merge of two complete models."""
    models = [{"model": "org/a", "parameters": {"weight": 0.5, "density": 0.5}}, {"model": "org/b"}]
    parameters = {"weight": [{"filter": "mlp", "value": 0.5}, {"value": [0.1, 0.2]}], "lambda": 1.0}
    return {"merge_method": "ties", "base_model": "org/base", "models": models, "parameters": parameters}


def sliced() -> dict[str, Any]:
    """One slice of two models, then one slice of one model."""
    low = {"sources": [_source("org/a", 0, 2), _source("org/b", 0, 2)], "parameters": {"weight": 0.5}}
    high = {"sources": [_source("org/b", 1, 4) | {"parameters": {"weight": 0.5}}]}
    return {"merge_method": "ties", "base_model": "org/base", "slices": [low, high]}


def moduled() -> dict[str, Any]:
    inner = whole()
    return inner | {"modules": {"default": {"models": inner.pop("models"), "parameters": {"density": 0.5}}}}


def tokened() -> dict[str, Any]:
    tokens = {"<a>": {"source": {"kind": "model_token", "model": "org/a", "token": "x"}}, "<b>": {"source": "org/b"}}
    return whole() | {"tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}}


def sampled() -> dict[str, Any]:
    return whole() | {"merge_method": "fisher", "parameters": {}, "sample": {"text": "texts.txt", "documents": 8}}


def routed() -> dict[str, Any]:
    return {"routing": {"hops": [{"model": "org/a", "layer": 0, "scale": 1.0}]}}


def _source(model: str, first: int, end: int) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end]}


def read(data: dict[str, Any], folder: Path) -> list[str]:
    """Read a recipe from a file, check it, and return the notes."""
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return checks.check(files.load(path), specs(), f"{path}: ")


def rename(node: Any, old: str, new: str) -> None:
    node[new] = node.pop(old)


# --- keys: every mapping of the schema, a key too many and a key misspelled -------------------------------------------

MAPPINGS: list[tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], dict[str, Any]], str, str]] = [
    (whole, lambda d: d, "", "base_model"),
    (whole, lambda d: d["models"][0], "models[0].", "model"),
    (sliced, lambda d: d["slices"][0], "slices[0].", "sources"),
    (sliced, lambda d: d["slices"][0]["sources"][1], "slices[0].sources[1].", "layer_range"),
    (moduled, lambda d: d["modules"]["default"], "modules.default.", "models"),
    (moduled, lambda d: d["modules"]["default"]["models"][1], "modules.default.models[1].", "model"),
    (tokened, lambda d: d["tokenizer"], "tokenizer.", "pad_to_multiple_of"),
    (tokened, lambda d: d["tokenizer"]["tokens"]["<b>"], "tokenizer.tokens.<b>.", "source"),
    (tokened, lambda d: d["tokenizer"]["tokens"]["<a>"]["source"], "tokenizer.tokens.<a>.source.", "token"),
    (routed, lambda d: d["routing"], "routing.", "hops"),
    (routed, lambda d: d["routing"]["hops"][0], "routing.hops[0].", "layer"),
]


@pytest.mark.parametrize(("make", "at", "place", "key"), MAPPINGS, ids=[entry[2] or "recipe" for entry in MAPPINGS])
def test_a_misspelled_key_is_named_with_the_nearest_known_one(make, at, place, key, tmp_path):
    data = make()
    misspelled = key[:-1] + key[-1] * 2
    rename(at(data), key, misspelled)
    with pytest.raises(RecipeError) as caught:
        read(data, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/night.yaml: {place}{misspelled}: unknown key. Known keys here: ")
    assert message.endswith(f"Did you mean '{key}'?")


@pytest.mark.parametrize(("make", "at", "place", "key"), MAPPINGS, ids=[entry[2] or "recipe" for entry in MAPPINGS])
@pytest.mark.parametrize("extra", ["zzz", "Models", "9", "str"])
def test_a_key_too_many_is_named_with_those_that_are_known(make, at, place, key, extra, tmp_path):
    data = make()
    at(data)[extra] = 1
    with pytest.raises(RecipeError) as caught:
        read(data, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/night.yaml: {place}{extra}: unknown key. Known keys here: ")
    assert key in str(caught.value)


# --- parameters: at every scope ---------------------------------------------------------------------------------------

SCOPES: list[tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    (whole, lambda d: d["parameters"], "parameters"),
    (whole, lambda d: d["models"][0]["parameters"], "models[0].parameters"),
    (sliced, lambda d: d["slices"][0]["parameters"], "slices[0].parameters"),
    (sliced, lambda d: d["slices"][1]["sources"][0]["parameters"], "slices[1].sources[0].parameters"),
    (moduled, lambda d: d["modules"]["default"]["parameters"], "modules.default.parameters"),
    (moduled, lambda d: d["modules"]["default"]["models"][0]["parameters"], "modules.default.models[0].parameters"),
]
scopes = pytest.mark.parametrize(("make", "at", "place"), SCOPES, ids=[entry[2] for entry in SCOPES])


@scopes
def test_a_misspelled_parameter_is_named_with_the_nearest_known_one(make, at, place, tmp_path):
    data = make()
    at(data)["denisty"] = 0.5
    with pytest.raises(RecipeError) as caught:
        read(data, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/night.yaml: {place}.denisty: unknown parameter. ties takes weight, density")
    assert message.endswith("Did you mean 'density'?")


@scopes
@pytest.mark.parametrize("value", [0, -0.1, 1.0001, 2, [0.5, 0.0], [{"filter": "mlp", "value": 1.5}, {"value": 0.5}]])
def test_a_density_outside_of_its_interval_is_refused(make, at, place, value, tmp_path):
    data = make()
    at(data)["density"] = value
    with pytest.raises(RecipeError, match=r"got (-?[\d.]+)\. A number in \(0, 1\]\.$") as caught:
        read(data, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/night.yaml: {place}.density: ")


@scopes
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "got True. A number"),
        ("much", "got 'much'. A number"),
        (None, "got None"),
        (float("nan"), "got nan. A finite number"),
        (float("inf"), "got inf. A finite number"),
        ([], "an empty list"),
        ([[1]], "got [1]"),
        ([0.5, {"value": 1}], "got 0.5. Use either numbers only"),
        ({"filter": "mlp"}, "missing"),
        ({"filter": 3, "value": 1}, "got 3. A substring of tensor names"),
        ({"filter": "mlp", "vale": 1, "value": 1}, "unknown key. Known keys here: filter, value"),
        ({"value": {"value": 1}}, "got {'value': 1}"),
        ([0.5, True], "All values of a gradient must have one type"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused_with_what_was_got(make, at, place, value, said, tmp_path):
    data = make()
    at(data)["weight"] = value
    with pytest.raises(RecipeError) as caught:
        read(data, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/night.yaml: {place}.weight")
    assert said in str(caught.value)


@scopes
def test_keys_that_tune_mergekits_memory_are_noted_and_ignored(make, at, place, tmp_path):
    (name,) = NO_EFFECT
    plain, tuned = make(), make()
    at(tuned)[name] = True
    assert read(plain, tmp_path) == []
    without = files.load(tmp_path / "night.yaml")
    assert read(tuned, tmp_path) == [
        f"{tmp_path}/night.yaml: {place}.{name}: has no effect (it only tunes mergekit's memory use)"
    ]
    contents = dict.fromkeys(without.references(), "00")
    assert canonical(without, contents) == canonical(files.load(tmp_path / "night.yaml"), contents)


def test_a_shared_parameter_is_not_valid_in_a_model(tmp_path):
    for make, at, place in SCOPES:
        if "models[" in place or "sources[" in place:
            data = make()
            at(data)["lambda"] = 1.0
            with pytest.raises(RecipeError, match=r"lambda: not a per-model parameter\. Move it to the recipe's"):
                read(data, tmp_path)


# --- values of keys: what is got, what is allowed ---------------------------------------------------------------------

VALUES: list[tuple[Callable[[], dict[str, Any]], Change, str]] = [
    (whole, lambda d: d.update(merge_method="tise"), r"merge_method: unknown method 'tise'\..*'ties'\?"),
    (whole, lambda d: d.pop("merge_method"), r"exactly one of merge_method and routing"),
    (whole, lambda d: d.pop("base_model"), r"base_model: missing\. ties works on differences from a base"),
    (whole, lambda d: d.pop("models"), r"models is missing or empty"),
    (whole, lambda d: d.update(slices=sliced()["slices"]), r"slices: not allowed together with models\. Exactly"),
    (whole, lambda d: d.update(modules=moduled()["modules"]), r"modules: not allowed together with models"),
    (whole, lambda d: d.update(dtype="float8"), r"dtype: .*'float32', 'bfloat16' or 'float16', got 'float8'"),
    (whole, lambda d: d.update(out_dtype="int8"), r"out_dtype: .*got 'int8'"),
    (whole, lambda d: d.update(seed=True), r"seed: got True. A whole number"),
    (whole, lambda d: d.update(seed="7"), r"seed: got '7'. A whole number"),
    (whole, lambda d: d.update(seed=-1), r"seed: .*greater than or equal to 0, got -1"),
    (whole, lambda d: d.update(seed=2**63), r".*9223372036854775808 is too large; whole numbers are below 2\^63"),
    (whole, lambda d: d.update(base_model=""), r"base_model: .*at least 1 character"),
    (whole, lambda d: d.update(chat_template=""), r"chat_template: .*at least 1 character"),
    (whole, lambda d: d.update(tokenizer_source=["union"]), r"tokenizer_source: .*valid string, got \['union'\]"),
    (whole, lambda d: d["models"].append({"model": "org/a"}), r"models\[2\]\.model: 'org/a' is listed twice\. Each"),
    (whole, lambda d: d["models"][1].pop("model"), r"models\[1\]\.model: missing\. Add this key"),
    (whole, lambda d: d.update(models={"model": "a"}), r"models: .*valid tuple"),
    (whole, lambda d: d.update(parameters=[0.5]), r"parameters: expected a mapping of parameter names to values"),
    (tokened, lambda d: d.update(tokenizer_source="base"), r"tokenizer_source: not allowed together with tokenizer"),
    (tokened, lambda d: d["tokenizer"].update(pad_to_multiple_of=0), r"tokenizer\.pad_to_multiple_of: .*got 0"),
    (
        tokened,
        lambda d: d["tokenizer"]["tokens"]["<a>"]["source"].update(token_id=3),
        r"tokenizer\.tokens\.<a>\.source: exactly one of token and token_id",
    ),
    (
        tokened,
        lambda d: d["tokenizer"]["tokens"]["<a>"]["source"].update(kind="one"),
        r"tokenizer\.tokens\.<a>\.source\.kind: got 'one'\. One of: model_token, zero",
    ),
    (tokened, lambda d: d["tokenizer"]["tokens"]["<b>"].update(force="yes"), r"<b>\.force: .*boolean, got 'yes'"),
    (
        sliced,
        lambda d: d["slices"][0]["sources"][1].update(model="org/a"),
        r"slices\[0\]\.sources\[1\]\.model: 'org/a' is listed twice\. Each model may be listed once per slice",
    ),
    (
        sliced,
        lambda d: d["slices"][0]["sources"][1].update(layer_range=[0, 3]),
        r"slices\[0\]\.sources\[1\]\.layer_range: 3 layers, but the first source has 2\. All sources",
    ),
    (
        sliced,
        lambda d: d["slices"][1]["sources"][0].update(layer_range=[2, 2]),
        r"slices\[1\]\.sources\[0\]: layer_range \[2, 2\] is empty",
    ),
    (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[-1, 2]), r"layer_range\[0\]: .*to 0, got -1"),
    (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[0]), r"layer_range\[1\]: missing"),
    (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, 2, 4]), r"layer_range: .*at most 2 items"),
    (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, "2"]), r"layer_range\[1\]: .*got '2'"),
    (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, 1.5]), r"layer_range\[1\]: .*got 1.5"),
    (sliced, lambda d: d["slices"][1].update(sources=[]), r"slices\[1\]\.sources: .*at least 1 item"),
    (sliced, lambda d: d["slices"][1]["sources"][0].pop("parameters"), r"sources\[0\]\.parameters\.weight: missing"),
    (
        sliced,
        lambda d: d["slices"][0]["sources"][1].update(layer_range=[1, 3]),
        r"slices\[0\]\.sources: the layers of the base 'org/base' are ambiguous: .*List the base with its layer_range",
    ),
    (moduled, lambda d: rename(d["modules"], "default", "text"), r"modules\.text: unknown module\. Only .*'default'"),
    (
        moduled,
        lambda d: d["modules"]["default"].update(slices=sliced()["slices"]),
        r"modules\.default: a module needs exactly one of models and slices",
    ),
    (routed, lambda d: d.update(parameters={"weight": 1}), r"models and parameters are only valid with merge_method"),
    (routed, lambda d: d.update(merge_method="ties"), r"exactly one of merge_method and routing"),
    (routed, lambda d: d["routing"]["hops"][0].update(scale=0), r"routing\.hops\[0\]\.scale: .*greater than 0, got 0"),
    (routed, lambda d: d["routing"]["hops"][0].update(layer=-1), r"routing\.hops\[0\]\.layer: .*got -1"),
    (routed, lambda d: d["routing"].update(max_gain=0.5), r"routing\.max_gain: .*greater than or equal to 1, got 0\.5"),
    (routed, lambda d: d["routing"]["hops"][0].update(scale=9.0), r"routing\.hops\[0\]\.scale: got 9; .*\[0\.125, 8\]"),
    (routed, lambda d: d.update(base_model="org/b"), r"base_model: not allowed with routing"),
    (routed, lambda d: d.update(chat_template="chatml"), r"chat_template: not allowed with routing"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "change", "message"), VALUES, ids=range(len(VALUES)))
def test_a_value_that_is_not_allowed_is_refused_with_file_and_key(make, change, message, tmp_path):
    data = make()
    change(data)
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/night\.yaml(: .*)?{message}"):
        read(data, tmp_path)


@pytest.mark.parametrize("make", [whole, sliced, moduled, tokened, routed])
def test_the_recipes_to_corrupt_are_valid(make, tmp_path):
    assert read(make(), tmp_path) == []


# --- models that do not fit each other --------------------------------------------------------------------------------

MISFITS = [
    ({"num_hidden_layers": 4}, r"cannot be merged: 3 and 4 layers\. Use models fine-tuned from one base"),
    (
        {"intermediate_size": 32},
        r"cannot be merged: '[\w.]+mlp\.\w+\.weight' is \d+×\d+ in one and \d+×\d+ in the other",
    ),
    ({"vocab_size": 44}, r"cannot be merged: vocabularies of 40 and 44 tokens"),
    ({"tie_word_embeddings": True}, r"cannot be merged: one ties its output head to its embeddings"),
]


@pytest.mark.parametrize(("config", "message"), MISFITS)
@pytest.mark.parametrize("form", ["models", "slices"])
def test_models_of_another_depth_shape_or_vocabulary_are_refused(config, message, form, tmp_path, random_model):
    one = random_model("LlamaForCausalLM", tie_word_embeddings=False)
    other = random_model("LlamaForCausalLM", seed=1, **({"tie_word_embeddings": False} | config))
    entries = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (one, other)]
    data: dict[str, Any] = {"merge_method": "linear", "models": entries}
    if form == "slices":
        data = {"merge_method": "linear", "slices": [{"sources": [e | {"layer_range": [0, 2]} for e in entries]}]}
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump(data))
    if form == "slices" and "num_hidden_layers" in config:
        assert open_models(files.load(path), str(path), Silent()).shape.num_layers == 2  # layers that both models have
        return
    with pytest.raises(InputError, match=message) as caught:
        open_models(files.load(path), str(path), Silent())
    assert str(caught.value).startswith(f"{path}: '{one}' and '{other}' ")


def test_a_layer_that_does_not_exist_is_refused_by_name(tmp_path, random_model):
    folder = random_model("LlamaForCausalLM")
    source = {"model": str(folder), "layer_range": [1, 4], "parameters": {"weight": 1.0}}
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "linear", "slices": [{"sources": [source]}]}))
    said = rf"slices\[0\]\.sources\[0\]\.layer_range: got \[1, 4\]\. '{folder}' has layers 0 to 2"
    with pytest.raises(RecipeError, match=said):
        open_models(files.load(path), str(path), Silent())


# --- nothing is read and ignored --------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], Change]] = {
    "merge_method": (whole, lambda d: d.update(merge_method="dare_ties")),
    "base_model": (whole, lambda d: d.update(base_model="org/a")),
    "models": (whole, lambda d: d["models"].reverse()),
    "models.parameters": (whole, lambda d: d["models"][0]["parameters"].update(weight=0.6)),
    "slices": (sliced, lambda d: d["slices"].reverse()),
    "slices.base_model": (sliced, lambda d: d["slices"][0].update(base_model="org/a")),
    "slices.parameters": (sliced, lambda d: d["slices"][0]["parameters"].update(weight=0.6)),
    "slices.layer_range": (sliced, lambda d: d["slices"][1]["sources"][0].update(layer_range=[0, 3])),
    "modules": (moduled, lambda d: d["modules"]["default"]["parameters"].update(density=0.6)),
    "parameters": (whole, lambda d: d["parameters"].update({"lambda": 0.9})),
    "parameters.filter": (whole, lambda d: d["parameters"]["weight"][0].update(filter="attn")),
    "routing": (routed, lambda d: d["routing"]["hops"][0].update(scale=0.5)),
    "dtype": (whole, lambda d: d.update(dtype="bfloat16", out_dtype="float32")),
    "out_dtype": (whole, lambda d: d.update(out_dtype="bfloat16")),
    "tokenizer_source": (whole, lambda d: d.update(tokenizer_source="union")),
    "tokenizer": (tokened, lambda d: d["tokenizer"].update(pad_to_multiple_of=16)),
    "tokenizer.tokens": (tokened, lambda d: d["tokenizer"]["tokens"]["<b>"].update(force=True)),
    "chat_template": (whole, lambda d: d.update(chat_template="chatml")),
    "seed": (whole, lambda d: d.update(seed=1)),
    "sample": (sampled, lambda d: d["sample"].update(documents=9)),
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_changes_the_id(key):
    make, change = CHANGES[key]
    names = ("org/base", "org/a", "org/b")
    contents = {name: name.encode().hex() for name in (*names, *(TOKENIZER_OF + name for name in names))}
    before, after = make(), make()
    change(after)
    recipes = [Recipe.model_validate(data) for data in (before, after)]
    contents |= {recipe.sample.key: recipe.sample.key for recipe in recipes if recipe.sample}  # in place of its tokens
    one, other = (canonical(recipe, contents) for recipe in recipes)
    assert one != other
    assert {name.split(".")[0] for name in CHANGES} == set(Recipe.model_fields)


def test_a_slices_weight_of_the_residual_is_noted(tmp_path):
    for make in (sliced, lambda: {**sliced(), "modules": {"default": {"slices": sliced()["slices"]}}}):
        data = make()
        place = "slices[1].residual_weight"
        if "modules" in data:
            del data["slices"]
            place = f"modules.default.{place}"
        holder = data["modules"]["default"] if "modules" in data else data
        holder["slices"][1]["residual_weight"] = 0.5
        assert read(data, tmp_path) == [f"{tmp_path}/night.yaml: {place}: has no effect (nor in mergekit)"]
