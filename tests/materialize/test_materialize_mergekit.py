"""Comparison with mergekit: it merges exported YAML to the same weights, tensor by tensor."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import from_mergekit, to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.recipe.shapes import Param

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

TOLERANCE = 2e-6
PER_LAYER = [0.2, 0.9, 0.4, 0.7]
FILTERS = [
    {"filter": "self_attn", "value": [0.1, 0.8, 0.3]},
    {"filter": "mlp.down_proj", "value": 0.55},
    {"filter": "lm_head", "value": 0.65},
    {"value": [0.9, 0.3]},
]


def by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        run_merge(
            config, str(out), MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        )
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def by_us(recipe: Recipe, family: dict[str, Checkpoint], out: Path) -> dict[str, torch.Tensor]:
    write_checkpoint(recipe, family, out, next(iter(family)))
    return load_file(out / "model.safetensors")


def assert_same(recipe: Recipe, family: dict[str, Checkpoint], folder: Path) -> None:
    shape = next(iter(family.values())).shape
    ours, theirs = (
        by_us(recipe, family, folder / "ours"),
        by_mergekit(to_mergekit(recipe, shape, specs()), folder / "theirs"),
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def recipe_of(family: dict[str, Checkpoint], method: str, **extra: object) -> Recipe:
    base, a, b, c = family
    models = [
        {"model": a, "parameters": {"weight": PER_LAYER}},
        {"model": b, "parameters": {"weight": FILTERS}},
        {"model": c},
    ]
    data: dict[str, object] = {"merge_method": method, "base_model": base, "models": models}
    if method == "linear":
        data["models"] = [*models[:2], {"model": c, "parameters": {"weight": 0.5}}]
    elif method == "slerp":
        data |= {"models": [{"model": a}], "parameters": {"t": FILTERS}}
    else:
        data["parameters"] = {"weight": [0.5, 0.25]}
    if method == "ties":
        data["parameters"] |= {"density": [{"filter": "mlp", "value": [0.3, 0.8]}, {"value": 0.6}]}
    return Recipe.model_validate(data | extra)


def within(param: Param, share: float) -> float:
    assert param.low is not None
    assert param.high is not None
    return param.low + share * (param.high - param.low)


@pytest.mark.parametrize("method", [name for name, spec in specs().items() if spec.mergekit and not spec.random])
def test_every_method_with_a_form_gives_mergekits_weights(method, tmp_path, untied):
    """Every number inside its bounds and different per model; those with random masks have tests of their own."""
    spec, (base, *parents) = specs()[method], untied
    given = {name: param for name, param in spec.parameters.items() if name not in spec.mergekit.fixed}
    numbers = {name: param for name, param in given.items() if param.kind == "float"}
    models = []
    for index, parent in enumerate(parents[: spec.models[1]]):
        own = {name: within(param, 0.3 + 0.2 * index) for name, param in numbers.items() if param.per_model}
        models.append({"model": parent, "parameters": own})
    shared = {name: within(param, 0.4) for name, param in numbers.items() if not param.per_model}
    data = {"merge_method": method, "models": models, "parameters": shared}
    recipe = Recipe.model_validate(data | ({"base_model": base} if spec.takes_base else {}))
    assert_same(recipe, untied, tmp_path)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_per_layer_values_and_filters(method, kind, tmp_path, request):
    family = request.getfixturevalue(kind)
    assert_same(recipe_of(family, method), family, tmp_path)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_lambda_and_negative_weights(method, normalize, tmp_path, untied):
    base, a, b, c = untied
    models = [{"model": name, "parameters": {"weight": w}} for name, w in ((a, 0.8), (b, -0.3), (c, 1.4))]
    shared = {"normalize": normalize, "lambda": 0.7}
    recipe = Recipe.model_validate({"merge_method": method, "base_model": base, "models": models, "parameters": shared})
    assert_same(recipe, untied, tmp_path)


def test_linear_without_base_or_normalize(tmp_path, untied):
    _, a, b, _ = untied
    models = [{"model": a, "parameters": {"weight": 0.8}}, {"model": b, "parameters": {"weight": 0.4}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models, "parameters": {"normalize": False}})
    assert_same(recipe, untied, tmp_path)


def test_linear_with_its_base_among_the_models(tmp_path, untied):
    base, a, *_ = untied
    models = [{"model": a, "parameters": {"weight": 0.8}}, {"model": base, "parameters": {"weight": 0.4}}]
    recipe = Recipe.model_validate({"merge_method": "linear", "base_model": base, "models": models})
    assert_same(recipe, untied, tmp_path)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_an_optional_base_is_not_added_for_its_config(method, tmp_path, untied):
    _, a, b, _ = untied
    models = [{"model": a, "parameters": {"weight": 0.8}}, {"model": b, "parameters": {"weight": PER_LAYER}}]
    recipe = Recipe.model_validate({"merge_method": method, "models": models})
    text = to_mergekit(recipe, next(iter(untied.values())).shape, specs())
    assert "base_model" not in text
    assert "config and tokenizer from any of the models" in text
    assert_same(recipe, untied, tmp_path)


def test_an_unlisted_base_is_one_more_model_of_karcher(tmp_path, untied):
    base, a, b, _ = untied
    text = f"{{merge_method: karcher, base_model: {base}, models: [{{model: {a}}}, {{model: {b}}}], dtype: float32}}"
    recipe = from_mergekit(text, "merge.yaml", specs())
    assert [entry.model for entry in recipe.models] == [a, b, base]
    ours, theirs = by_us(recipe, untied, tmp_path / "ours"), by_mergekit(text, tmp_path / "theirs")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("spread", [0.02, 0.0001])
def test_slerp_on_the_arc_and_on_the_chord(listed, spread, tmp_path, make_family):
    """Fine-tunes near their base are merged along the chord, others along the arc."""
    family = make_family(spread=spread)
    base, a, *_ = family
    models = [{"model": a}, {"model": base}] if listed else [{"model": a}]
    recipe = Recipe.model_validate(
        {"merge_method": "slerp", "base_model": base, "models": models, "parameters": {"t": [0.1, 0.9]}}
    )
    assert_same(recipe, family, tmp_path)


def test_switches_that_change_with_depth(tmp_path, untied):
    base, a, b, _ = untied
    models = [{"model": a, "parameters": {"weight": 0.8}}, {"model": b, "parameters": {"weight": 0.4}}]
    switch = [{"filter": "mlp", "value": [True, False]}, {"value": [False, True]}]
    recipe = Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": base, "models": models, "parameters": {"normalize": switch}}
    )
    assert_same(recipe, untied, tmp_path)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_rounding_to_bfloat16_is_the_same(method, tmp_path, untied):
    recipe = recipe_of(untied, method, out_dtype="bfloat16")
    shape = next(iter(untied.values())).shape
    ours, theirs = (
        by_us(recipe, untied, tmp_path / "a"),
        by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "b"),
    )
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), theirs[name].float(), rtol=2**-7, atol=TOLERANCE)  # one unit


def test_mergekits_gradient_would_put_final_norm_and_head_elsewhere(tmp_path, untied):
    """The reason for explicit entries: mergekit uses the first value of a gradient there, evosearch the last."""
    base, a, *_ = untied
    recipe = Recipe.model_validate(
        {"merge_method": "slerp", "base_model": base, "models": [{"model": a}], "parameters": {"t": [0.0, 1.0]}}
    )
    ours, theirs = by_us(recipe, untied, tmp_path / "ours"), by_mergekit(recipe.to_yaml(), tmp_path / "theirs")
    for name in ("model.norm.weight", "lm_head.weight"):
        torch.testing.assert_close(ours[name], untied[a].load(name))
        torch.testing.assert_close(theirs[name], untied[base].load(name))
    same = "model.layers.2.mlp.up_proj.weight"
    torch.testing.assert_close(ours[same], theirs[same], rtol=0, atol=TOLERANCE)


def test_the_config_is_the_bases_with_the_output_type(tmp_path, untied):
    base = next(iter(untied))
    recipe = recipe_of(untied, "ties", out_dtype="bfloat16")
    write_checkpoint(recipe, untied, tmp_path / "out", base)
    config = Checkpoint.open(tmp_path / "out").config
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert {key: config[key] for key in untied[base].config if key not in ("dtype", "torch_dtype")} == {
        key: value for key, value in untied[base].config.items() if key not in ("dtype", "torch_dtype")
    }
