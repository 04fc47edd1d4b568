"""Slices: layers of several models, stacked and merged, on disk and in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.layout import output
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.recipe.schema import Recipe

Family = dict[str, Checkpoint]
Q, UP = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"
EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@pytest.fixture(scope="session")
def deep(make_family: Callable[..., Family]) -> Family:
    """Models with six layers; `untied` has four."""
    return make_family(num_hidden_layers=6)


def source(model: str, first: int, end: int, **parameters: object) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end]} | ({"parameters": parameters} if parameters else {})


def sliced(method: str, *slices: list[dict[str, Any]] | dict[str, Any], **more: object) -> Recipe:
    listed = [part if isinstance(part, dict) else {"sources": part} for part in slices]
    return Recipe.model_validate({"merge_method": method, "slices": listed, **more})


def made(recipe: Recipe, checkpoints: Family, folder: Path) -> Checkpoint:
    """Compare the export, loaded by transformers, with the live model: equal bits and logits."""
    write_checkpoint(recipe, checkpoints, folder / "out", donor_of(recipe))
    written = Checkpoint.open(folder / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    resident = ResidentModel(checkpoints, donor_of(recipe), example=recipe)
    resident.materialize(recipe)
    live = resident.model.state_dict()
    assert set(live) - set(written.tensors) <= {HEAD}  # tied: one tensor on disk, two names in the model
    for name in written.tensors:
        assert torch.equal(live[name], written.load(name)), name
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(resident.model(tokens).logits, loaded(tokens).logits)
        resident.model.generate(tokens, max_new_tokens=2, do_sample=False, pad_token_id=0)  # its cache has all layers
    assert len(loaded.model.layers) == loaded.config.num_hidden_layers == written.shape.num_layers
    return written


def same(written: Checkpoint, name: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(written.load(name), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_layers_of_two_models_stacked(kind, method, tmp_path, request):
    _, a, b, _ = family = request.getfixturevalue(kind)
    weight = {"weight": 1.0} if method == "linear" else {}
    recipe = sliced(method, [source(a, 0, 3, **weight)], [source(b, 1, 4, **weight)])
    written = made(recipe, {name: family[name] for name in (a, b)}, tmp_path)
    assert written.shape.num_layers == 6
    for layer, (model, own) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        for pattern in (Q, UP):
            same(written, pattern.format(layer), family[model].load(pattern.format(own)))
    same(written, EMBEDDINGS, family[a].load(EMBEDDINGS))
    same(written, NORM, family[b].load(NORM))
    if kind == "untied":
        same(written, HEAD, family[b].load(HEAD))


def test_one_model_repeated_scaled_and_cut_short(tmp_path, untied):
    a = list(untied)[1]
    scale = [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]
    repeated = sliced("passthrough", [source(a, 0, 2)], [source(a, 0, 2, scale=scale)], [source(a, 2, 4)])
    written = made(repeated, {a: untied[a]}, tmp_path / "more")
    o_proj = "model.layers.{}.self_attn.o_proj.weight"
    same(written, o_proj.format(2), 0.5 * untied[a].load(o_proj.format(0)))
    same(written, Q.format(3), untied[a].load(Q.format(1)))
    same(written, Q.format(5), untied[a].load(Q.format(3)))
    shorter = made(sliced("passthrough", [source(a, 3, 4)]), {a: untied[a]}, tmp_path / "less")
    assert shorter.shape.num_layers == 1
    same(shorter, UP.format(0), untied[a].load(UP.format(3)))


@pytest.mark.parametrize("listed", [True, False])
def test_sources_merged_with_gradients_over_their_slice(listed, tmp_path, untied):
    base, a, b, _ = untied
    bases = [source(base, 0, 2)] if listed else []
    recipe = sliced(
        "task_arithmetic",
        [*bases, source(a, 0, 2, weight=[0.0, 1.0]), source(b, 0, 2, weight=0.5)],
        [source(a, 1, 4), source(b, 1, 4, weight=[{"filter": "mlp", "value": [0.2, 0.6]}])],
        base_model=base,
        parameters={"weight": [0.3, 0.9], "lambda": 0.5},
    )
    written = made(recipe, untied, tmp_path)
    theta = {name: checkpoint.load for name, checkpoint in untied.items()}

    def merge(name: str, weight_a: float, weight_b: float) -> torch.Tensor:
        zero = theta[base](name)
        return zero + 0.5 * (weight_a * (theta[a](name) - zero) + weight_b * (theta[b](name) - zero))

    assert written.shape.num_layers == 5
    for layer, own, weight_a, weights_b in (
        (0, 0, 0.0, {Q: 0.5, UP: 0.5}),
        (1, 1, 1.0, {Q: 0.5, UP: 0.5}),
        (2, 1, 0.3, {Q: 0.3, UP: 0.2}),
        (3, 2, 0.6, {Q: 0.6, UP: 0.4}),
        (4, 3, 0.9, {Q: 0.9, UP: 0.6}),
    ):
        for pattern, weight_b in weights_b.items():
            same(written, pattern.format(layer), merge(pattern.format(own), weight_a, weight_b))
    same(written, EMBEDDINGS, merge(EMBEDDINGS, 0.0, 0.5))  # the start of the first slice
    same(written, NORM, merge(NORM, 0.9, 0.9))  # the end of the last
    same(written, HEAD, merge(HEAD, 0.9, 0.9))


def test_different_layers_are_merged_if_the_base_lists_its_own(tmp_path, untied):
    base, a, b, _ = untied
    sources = [source(a, 0, 2, weight=1.0), source(b, 2, 4, weight=0.5)]
    recipe = sliced("task_arithmetic", [source(base, 1, 3), *sources], base_model=base)
    written = made(recipe, untied, tmp_path)
    for layer in (0, 1):
        zero = untied[base].load(UP.format(layer + 1))
        deltas = [untied[a].load(UP.format(layer)) - zero, untied[b].load(UP.format(layer + 2)) - zero]
        same(written, UP.format(layer), zero + deltas[0] + 0.5 * deltas[1])
    hidden = sliced("task_arithmetic", sources, base_model=base)
    with pytest.raises(RecipeError, match=r"slices\[0\]\.sources: the layers of the base .*List the base with its"):
        write_checkpoint(hidden, untied, tmp_path / "hidden", base)


def test_a_slice_may_have_a_base_of_its_own(tmp_path, untied):
    base, a, b, _ = untied
    own = {"sources": [source(a, 2, 4, weight=0.5)], "base_model": b}
    recipe = sliced("task_arithmetic", [source(a, 0, 2, weight=0.5)], own, base_model=base)
    assert recipe.references() == (base, a, b)
    written = made(recipe, {name: untied[name] for name in (base, a, b)}, tmp_path)
    for name, zero in ((Q.format(1), base), (Q.format(2), b), (EMBEDDINGS, base), (NORM, b), (HEAD, b)):
        same(written, name, (untied[zero].load(name) + untied[a].load(name)) / 2)


@pytest.mark.parametrize("method", ["slerp", "ties", "linear"])
def test_models_of_different_depth_give_layers_to_one(method, tmp_path, untied, deep):
    (base, a, *_), (far, *_) = untied, deep
    checkpoints = {name: (untied | deep)[name] for name in (base, a, far)}
    parameters = {"t": [0.2, 0.8]} if method == "slerp" else {"weight": [0.2, 0.8]}
    low, high = [source(base, 0, 2), source(far, 0, 2)], [source(base, 2, 4), source(far, 4, 6)]
    recipe = sliced(method, low, high, base_model=base, parameters=parameters)
    checkpoints = {base: untied[base], far: deep[far]}
    written = made(recipe, checkpoints, tmp_path)
    assert written.shape.num_layers == 4  # as many as the base, but not a plain merge of the two
    assert output(recipe, checkpoints).shape is not untied[base].shape
    if method == "linear":
        same(written, UP.format(3), (untied[base].load(UP.format(3)) + deep[far].load(UP.format(5))) / 2)
        same(written, UP.format(2), (untied[base].load(UP.format(2)) + deep[far].load(UP.format(4))) / 2)
    if method == "ties":
        one, other = untied[base].load(Q.format(2)), deep[far].load(Q.format(4))
        same(written, Q.format(2), one + (other - one))  # normalized: one parent's whole difference


def test_layers_deeper_than_the_donors_are_reached(tmp_path, untied, deep):
    (base, *_), (far, *_) = untied, deep
    checkpoints = {base: untied[base], far: deep[far]}
    recipe = sliced("passthrough", [source(base, 0, 4)], [source(far, 3, 6)], base_model=base)
    written = made(recipe, checkpoints, tmp_path)
    assert written.shape.num_layers == 7
    same(written, Q.format(6), deep[far].load(Q.format(5)))


def test_slices_that_keep_every_layer_in_its_place_are_the_plain_merge(tmp_path, untied):
    base, a, b, _ = untied
    models = [{"model": a, "parameters": {"weight": [0.2, 0.8]}}, {"model": b, "parameters": {"weight": 0.3}}]
    plain = Recipe.model_validate({"merge_method": "ties", "base_model": base, "models": models})
    sources = [source(a, 0, 4, weight=[0.2, 0.8]), source(b, 0, 4, weight=0.3)]
    stacked = sliced("ties", sources, base_model=base)
    for name, recipe in (("plain", plain), ("stacked", stacked)):
        write_checkpoint(recipe, untied, tmp_path / name, base)
    one, other = Checkpoint.open(tmp_path / "plain"), Checkpoint.open(tmp_path / "stacked")
    assert one.content_sha256() == other.content_sha256()
    assert one.config == other.config
    assert output(stacked, untied).shape is untied[base].shape


def test_a_language_model_has_one_module(tmp_path, untied):
    base, a, *_ = untied
    slices = [{"sources": [source(a, 0, 2)], "parameters": {"weight": 0.25}}, {"sources": [source(a, 2, 4)]}]
    module = {"slices": slices, "parameters": {"weight": 0.5}}
    recipe = Recipe.model_validate(
        {"merge_method": "task_arithmetic", "base_model": base, "modules": {"default": module}}
    )
    written = made(recipe, untied, tmp_path)
    for layer, weight in ((0, 0.25), (1, 0.25), (2, 0.5), (3, 0.5)):
        zero, theta = (untied[name].load(Q.format(layer)) for name in (base, a))
        same(written, Q.format(layer), zero + weight * (theta - zero))


def test_one_resident_model_takes_every_recipe_of_its_layers_and_no_other(untied):
    _, a, b, _ = untied
    checkpoints = {name: untied[name] for name in (a, b)}

    def stack(weight: float, end: int = 4) -> Recipe:
        return sliced("linear", [source(a, 0, 2, weight=1.0)], [source(a, 1, end), source(b, 1, end, weight=weight)])

    def both(weight: float, end: int = 4) -> Recipe:
        return Recipe.model_validate(stack(weight, end).to_dict() | {"parameters": {"weight": 1.0}})

    resident = ResidentModel(checkpoints, a, example=both(0.5))
    for weight in (0.5, 0.25):
        resident.materialize(both(weight))
        one, other = (untied[name].load(UP.format(1)) for name in (a, b))
        expected = (one + weight * other) / (1 + weight)
        torch.testing.assert_close(resident.model.state_dict()[UP.format(2)], expected, rtol=0, atol=1e-6)
    with pytest.raises(RecipeError, match=r"its layers differ from those of the loaded model, which has 5"):
        resident.materialize(both(0.5, end=3))


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([("a", 0, 5)], r"slices\[0\]\.sources\[0\]\.layer_range: got \[0, 5\]\. '.*' has layers 0 to 3"),
        ([("a", 0, 2), ("b", 3, 9)], r"slices\[1\]\.sources\[0\]\.layer_range: got \[3, 9\]"),
    ],
)
def test_missing_layers_are_refused(slices, message, untied, tmp_path):
    names = dict(zip("xabc", untied, strict=True))
    recipe = sliced("linear", *([source(names[n], low, high, weight=1.0)] for n, low, high in slices))
    with pytest.raises(RecipeError, match=message):
        write_checkpoint(recipe, untied, tmp_path / "out", donor_of(recipe))
    with pytest.raises(RecipeError, match=message):
        ResidentModel(untied, donor_of(recipe), example=recipe)
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_sizes_are_refused(untied, make_family, tmp_path):
    (a, *_), (other, *_) = untied, (wide := make_family(intermediate_size=32))
    recipe = sliced("linear", [source(a, 0, 2, weight=1.0)], [source(other, 0, 2, weight=1.0)])
    checkpoints = {a: untied[a], other: wide[other]}
    with pytest.raises(CheckpointError, match=r"cannot be merged: 'model\.layers\.0\.mlp\.\w+\.weight' is .*×"):
        write_checkpoint(recipe, checkpoints, tmp_path / "out", a)


def test_layers_that_an_unlisted_base_has_not_are_refused(untied, deep):
    (base, *_), (far, *_) = untied, deep
    checkpoints = {base: untied[base], far: deep[far]}
    recipe = sliced("task_arithmetic", [source(far, 3, 6, weight=1.0)], base_model=base)
    with pytest.raises(
        RecipeError, match=r"slices\[0\]\.sources: needs layers 3 to 5 of the base .* has 0 to 3\. List the base"
    ):
        output(recipe, checkpoints)
    listed = sliced("task_arithmetic", [source(base, 1, 4), source(far, 3, 6, weight=1.0)], base_model=base)
    assert output(listed, checkpoints).shape.num_layers == 3


def test_complete_models_of_different_depth_are_refused_whichever_is_the_donor(untied, deep, tmp_path):
    (a, *_), (far, *_) = untied, deep
    for base, other in ((a, far), (far, a)):
        models = [{"model": other, "parameters": {"weight": 1.0}}]
        recipe = Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": base, "models": models})
        with pytest.raises(CheckpointError, match=r"cannot be merged: \d and \d layers"):
            write_checkpoint(recipe, untied | deep, tmp_path / "out", base)
