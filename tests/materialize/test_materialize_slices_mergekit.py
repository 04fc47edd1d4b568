"""Slices compared with mergekit: equal weights from exports, and intended differences."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError
from evosearch.materialize.layout import output
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.recipe import checks
from evosearch.recipe.mergekit import from_mergekit, to_mergekit
from evosearch.recipe.schema import Recipe

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

Family = dict[str, Checkpoint]
TOLERANCE = 2e-6
NORM, HEAD, EMBEDDINGS = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="session")
def deep(make_family: Any) -> Family:
    return make_family(num_hidden_layers=6)


def by_mergekit(data: str | dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    loaded = yaml.safe_load(data) if isinstance(data, str) else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(loaded), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_us(recipe: Recipe, checkpoints: Family, out: Path) -> dict[str, torch.Tensor]:
    write_checkpoint(recipe, checkpoints, out, donor_of(recipe))
    return load_file(out / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def source(model: str, first: int, end: int, **parameters: object) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end]} | ({"parameters": parameters} if parameters else {})


def one_slice(*sources: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"sources": list(sources), **more}


FILTERS = [{"filter": "self_attn", "value": [0.1, 0.8]}, {"filter": "lm_head", "value": 0.65}, {"value": [0.9, 0.3]}]


def exported(kind: str, base: str, a: str, b: str, far: str) -> dict[str, Any]:
    """Recipes that mergekit can express; most have gradients that affect embeddings, norm or head."""
    if kind == "stack":
        return {"merge_method": "passthrough", "slices": [one_slice(source(a, 0, 3)), one_slice(source(b, 1, 4))]}
    if kind == "scaled":
        scale = [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]
        slices = [one_slice(source(a, 0, 3)), one_slice(source(a, 1, 4, scale=scale))]
        return {"merge_method": "passthrough", "slices": slices}
    if kind == "linear":
        low = one_slice(source(a, 0, 2, weight=[0.2, 0.9]), source(b, 1, 3, weight=0.5))
        high = one_slice(source(b, 2, 4), source(a, 2, 4), parameters={"weight": [1.0, 0.25]})
        return {"merge_method": "linear", "slices": [low, high]}
    if kind == "linear of other depth":
        low = one_slice(source(a, 0, 4, weight=[0.2, 0.9]), source(far, 2, 6, weight=0.5))
        return {"merge_method": "linear", "base_model": base, "slices": [low]}
    if kind == "slerp":
        low, high = one_slice(source(base, 0, 2), source(a, 0, 2)), one_slice(source(b, 1, 4), source(base, 1, 4))
        data = {"merge_method": "slerp", "base_model": base, "slices": [low, high | {"parameters": {"t": [0.1, 0.7]}}]}
        return data | {"parameters": {"t": FILTERS}}
    if kind == "slerp with bases of its slices":
        low = one_slice(source(a, 0, 2), source(b, 0, 2), base_model=b)
        high = one_slice(source(a, 2, 4), source(base, 2, 4), base_model=a)
        data = {"merge_method": "slerp", "base_model": base, "parameters": {"t": FILTERS}}
        return data | {"slices": [low, high]}
    low = one_slice(source(a, 0, 3, weight=FILTERS), source(b, 0, 3, weight=0.5), parameters={"lambda": 0.8})
    high = one_slice(source(base, 1, 4), source(a, 0, 3), source(b, 1, 4), parameters={"weight": [0.4, -0.2]})
    data = {"merge_method": kind, "base_model": base, "slices": [low, high], "parameters": {"weight": 0.3}}
    if kind == "ties":
        data["parameters"] |= {"density": [{"filter": "mlp", "value": [0.3, 0.8]}, {"value": 0.6}]}
    return data


KINDS = [
    "stack",
    "scaled",
    "linear",
    "linear of other depth",
    "slerp",
    "slerp with bases of its slices",
    "task_arithmetic",
    "ties",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_of_slices_gives_our_weights(kind, untied, deep, tmp_path):
    (base, a, b, _), (far, *_) = untied, deep
    recipe = Recipe.model_validate(exported(kind, base, a, b, far))
    checkpoints = {name: (untied | deep)[name] for name in (*recipe.references(), a)}
    text = to_mergekit(recipe, output(recipe, checkpoints).shape, specs())
    theirs = by_mergekit(text, tmp_path / "theirs")
    assert_same(by_us(recipe, checkpoints, tmp_path / "ours"), theirs)
    layers = Checkpoint.open(tmp_path / "ours").config["num_hidden_layers"]
    assert layers == yaml.safe_load((tmp_path / "theirs/config.json").read_text())["num_hidden_layers"]
    again = from_mergekit(text, "export.yaml", specs())
    assert_same(by_us(again, checkpoints, tmp_path / "again"), theirs)


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "passthrough"])
def test_a_file_without_gradients_at_the_ends_means_the_same_to_both(kind, method, tmp_path, request):
    base, a, b, _ = family = request.getfixturevalue(kind)
    end = [{"filter": name, "value": 0.5} for name in (EMBEDDINGS, "model.norm", "lm_head")]
    value = [*end, {"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.4}]
    if method == "passthrough":
        slices = [one_slice(source(a, 0, 2, scale=value)), one_slice(source(b, 0, 4))]
    elif method == "slerp":
        slices = [one_slice(source(base, 0, 3), source(a, 0, 3)), one_slice(source(base, 2, 3), source(b, 2, 3))]
    else:
        sources = [source(base, 0, 3), source(a, 0, 3), source(b, 1, 4)]
        high = [source(a, 3, 4), source(base, 3, 4), source(b, 3, 4)]
        slices = [one_slice(*sources), one_slice(*high, parameters={"weight": 0.75})]
    name = {"passthrough": "scale", "slerp": "t"}.get(method, "weight")
    data = {"merge_method": method, "slices": slices, "parameters": {name: 1.0 if method == "passthrough" else value}}
    if method not in ("passthrough", "linear"):
        data["base_model"] = base
    recipe = Recipe.model_validate(data)
    checkpoints = {name: family[name] for name in recipe.references()}
    theirs = by_mergekit(data | {"dtype": "float32"}, tmp_path / "theirs")
    assert_same(by_us(recipe, checkpoints, tmp_path / "ours"), theirs)


def test_modules_mean_the_same_to_both(untied, tmp_path):
    base, a, b, _ = untied
    end = [{"filter": name, "value": 0.5} for name in (EMBEDDINGS, "model.norm", "lm_head")]
    models = [{"model": base}, {"model": a, "parameters": {"weight": 0.6}}, {"model": b}]
    module = {"models": models, "parameters": {"weight": [*end, {"value": [0.2, 0.8]}]}}
    data = {"merge_method": "task_arithmetic", "base_model": base, "modules": {"default": module}}
    recipe = Recipe.model_validate(data | {"parameters": {"weight": 9.0, "lambda": 0.5}})
    ours = by_us(recipe, {name: untied[name] for name in (base, a, b)}, tmp_path / "ours")
    shape = untied[base].shape
    assert_same(ours, by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "exported"))
    # What mergekit 0.1.5 does with the file itself: module parameters are found, and precede the recipe's.
    assert_same(ours, by_mergekit(recipe.to_dict() | {"dtype": "float32"}, tmp_path / "theirs"))


# --- intended differences from mergekit ----------------------------------------------------------------------------


def test_final_norm_and_head_are_at_the_end_of_the_last_slice(untied, tmp_path):
    """Mergekit 0.1.5 evaluates them at the start of its gradient."""
    base, a, b, _ = untied
    slices = [one_slice(source(base, 0, 2), source(a, 0, 2)), one_slice(source(base, 2, 4), source(b, 2, 4))]
    data = {"merge_method": "slerp", "base_model": base, "slices": slices, "parameters": {"t": [0.0, 1.0]}}
    recipe = Recipe.model_validate(data)
    ours = by_us(recipe, {name: untied[name] for name in (base, a, b)}, tmp_path / "ours")
    theirs = by_mergekit(data | {"dtype": "float32"}, tmp_path / "theirs")
    for name in (NORM, HEAD):
        torch.testing.assert_close(ours[name], untied[b].load(name), rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(theirs[name], untied[base].load(name), rtol=0, atol=TOLERANCE)
    del ours[NORM], ours[HEAD], theirs[NORM], theirs[HEAD]
    assert_same(ours, theirs)


def test_every_source_of_the_last_slice_counts(untied, tmp_path):
    """In mergekit 0.1.5, final norm and head have as many sources as the first slice."""
    _, a, b, c = untied
    last = one_slice(source(a, 2, 4, weight=1.0), source(b, 2, 4, weight=1.0), source(c, 2, 4, weight=2.0))
    data = {"merge_method": "linear", "slices": [one_slice(source(a, 0, 2, weight=1.0)), last]}
    recipe = Recipe.model_validate(data)
    ours = by_us(recipe, {name: untied[name] for name in (a, b, c)}, tmp_path / "ours")
    theirs = by_mergekit(data | {"dtype": "float32"}, tmp_path / "theirs")
    for name in (NORM, HEAD):
        whole = (untied[a].load(name) + untied[b].load(name) + 2 * untied[c].load(name)) / 4
        torch.testing.assert_close(ours[name], whole, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(theirs[name], untied[a].load(name), rtol=0, atol=TOLERANCE)
    with pytest.raises(RecipeError, match=r"slices\[1\]\.sources: mergekit would use only the first 1 sources"):
        to_mergekit(recipe, output(recipe, {name: untied[name] for name in (a, b, c)}).shape, specs())


def test_a_last_slice_that_gets_an_unlisted_base_is_refused_where_it_grows(untied):
    """The export lists the base, which counts as a source."""
    base, a, *_ = untied
    low = one_slice(source(base, 0, 2), source(a, 0, 2, weight=1.0))
    high = one_slice(source(a, 2, 4, weight=1.0))
    shape = untied[base].shape
    for slices in ([low, high], [high | {"sources": [source(a, 0, 2, weight=1.0)]}, one_slice(*low["sources"])]):
        recipe = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": base, "slices": slices})
        assert len(yaml.safe_load(to_mergekit(recipe, shape, specs()))["slices"][1]["sources"]) == 2
    grown = [
        one_slice(*low["sources"]),
        one_slice(source(a, 2, 4, weight=1.0), source(list(untied)[2], 2, 4, weight=1.0)),
    ]
    recipe = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": base, "slices": grown})
    with pytest.raises(RecipeError, match=r"slices\[1\]\.sources: mergekit would use only the first 2 sources"):
        to_mergekit(recipe, shape, specs())


def test_a_model_twice_in_a_slice_is_an_error(untied):
    a = list(untied)[1]
    sources = [source(a, 0, 2, weight=1.0), source(a, 2, 4, weight=3.0)]
    recipe = Recipe.model_validate({"merge_method": "linear", "slices": [one_slice(*sources)]})
    with pytest.raises(
        RecipeError,
        match=r"r: slices\[0\]\.sources\[1\]\.model: '.*' is listed twice\. Each model may be listed once per slice",
    ):
        checks.check(recipe, specs(), "r: ")


def test_unknown_keys_are_errors_at_every_level(untied):
    """Unlike in mergekit 0.1.5, which ignores them outside of `parameters`."""
    a = list(untied)[1]
    data = {"merge_method": "linear", "slices": [one_slice(source(a, 0, 4, weight=1.0) | {"layerrange": 1}, bace=2)]}
    assert MergeConfiguration.model_validate(data | {"sead": 1}).slices[0].sources[0].layer_range == (0, 4)
    for key, where in (("sead", "sead"), ("bace", r"slices\[0\]\.bace"), ("layerrange", r"sources\[0\]\.layerrange")):
        text = yaml.safe_dump(_without(data | {"sead": 1}, {"sead", "bace", "layerrange"} - {key}))
        with pytest.raises(RecipeError, match=f"{where}: unknown key"):
            from_mergekit(text, "r.yaml", specs())


def _without(node: Any, keys: set[str]) -> Any:
    if isinstance(node, dict):
        return {key: _without(value, keys) for key, value in node.items() if key not in keys}
    return [_without(item, keys) for item in node] if isinstance(node, list) else node


DONOR = """
import sys
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe
entries = [{"model": name, "layer_range": [0, 2], "parameters": {"weight": 1}} for name in sys.argv[1:]]
print(donor_of(Recipe.model_validate({"merge_method": "linear", "slices": [{"sources": entries}]})))
"""


def test_the_config_comes_from_the_first_model_whatever_the_hash_seed():
    """Unlike in mergekit 0.1.5, which without a base takes the first model of a set."""
    found = {
        subprocess.run(
            [sys.executable, "-c", DONOR, "org/x", "org/y", "org/z"],
            env={"PYTHONHASHSEED": str(seed), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert found == {"org/x"}
