"""regmean_plus: Gram matrices behind the merged earlier layers, against full forward passes of half-merged models."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.skeleton import build, generation_folder, targets
from evosearch.moments import merge_moments
from evosearch.moments.gram_matrices import adding, linear_layers, watched
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.service.merge import merge

torch.set_num_threads(1)
World = Callable[..., Path]
DOCUMENTS = ((5, 6, 7, 8, 4), (9, 10, 4), (11,), (4, 12, 13, 6))
WEIGHTS = (0.6, 0.9)
METHOD = "regmean_plus"


def recipe_of(*models: Path, method: str = METHOD, **parameters: float) -> Recipe:
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, WEIGHTS, strict=True)]
    return Recipe.model_validate(
        {"merge_method": method, "models": entries, "parameters": parameters, "sample": {"text": "drawn"}}
    )


def opened(recipe: Recipe, cache: Path) -> dict[str, Checkpoint]:
    models = {entry.model: Checkpoint.open(Path(entry.model)) for entry in recipe.models}
    assert recipe.sample is not None
    SampledMoments(cache, "cpu", known={recipe.sample.key: DOCUMENTS}).attach(recipe.sample, models, recipe)
    return models


def merged(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    models = opened(recipe, folder / "cache")
    write_checkpoint(recipe, models, folder / "out", recipe.models[0].model)
    return load_file(folder / "out" / "model.safetensors")


def brute(recipe: Recipe, alpha: float = 0.9) -> dict[str, torch.Tensor]:
    """Layer by layer: whole forward passes of a model with merged layers below and a parent's layer; numpy's solver."""
    parents = [Checkpoint.open(Path(entry.model)) for entry in recipe.models]
    first = parents[0]
    model: Any = build(generation_folder(first), first.config, first.tensors, first.load, torch.float32)
    live = targets(model, first.config, first.family, first.tensors)
    places = {name: first.family.placement(name, first.config) for name in first.tensors}
    depth, layers = first.shape.num_layers, linear_layers(model, places)
    found: dict[str, torch.Tensor] = {}

    def turned(name: str) -> bool:
        return first.family.transposed and name.startswith("transformer.h.")  # stored as (in, out)

    def stage(name: str) -> int:
        spec = first.shape.by_name[name]
        return spec.layer if spec.layer is not None else -1 if spec.place.value == "embeddings" else depth

    for position in range(-1, depth + 1):
        names = [name for name in first.tensors if stage(name) == position]
        linear = [name for name in names if name in layers]
        grams = []
        for parent in parents if linear else ():
            for name in names:
                live[name].copy_(parent.load(name))
            sums = {n: torch.zeros((layers[n].weight.shape[0 if turned(n) else 1],) * 2) for n in linear}
            with watched({name: layers[name] for name in linear}, adding(sums, 1 / sum(map(len, DOCUMENTS)))):
                for tokens in DOCUMENTS:
                    model(torch.tensor([tokens]))
            grams.append(sums)
        for name in names:
            thetas = [parent.load(name).double().numpy() for parent in parents]
            if name not in linear:
                result = sum(w * t for w, t in zip(WEIGHTS, thetas, strict=True)) / sum(WEIGHTS)
            else:
                left = right = 0.0
                for w, theta, own in zip(WEIGHTS, thetas, grams, strict=True):
                    g = own[name].double().numpy()
                    ridge = 1e-6 * np.diag(g).mean() * np.eye(len(g))
                    g = w * (alpha * g + (1 - alpha) * np.diag(np.diag(g)) + ridge)
                    left, right = left + g, right + g @ (theta if turned(name) else theta.T)
                result = np.linalg.solve(left, right)
                result = result if turned(name) else result.T
            found[name] = torch.from_numpy(np.ascontiguousarray(result)).float()
            live[name].copy_(found[name])
    return found


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2ForCausalLM", "Gemma2ForCausalLM"]
)
def test_grams_are_those_behind_the_merged_earlier_layers(
    architecture: str, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = architecture in ("Qwen2ForCausalLM", "Gemma2ForCausalLM")
    one = random_model(architecture, seed=1, tie_word_embeddings=tied)
    recipe = recipe_of(one, random_model(architecture, seed=2, near=one))
    found, expected = merged(recipe, tmp_path), brute(recipe)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    plain = merged(recipe_of(*map(Path, recipe.parents), method="regmean"), tmp_path / "plain")
    assert any((plain[name] - tensor).abs().max() > 1e-2 for name, tensor in found.items()), "regmean differs"


def test_memory_and_disk_have_the_same_bits_and_the_file_is_used_again(
    random_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = random_model("LlamaForCausalLM", seed=1)
    recipe = recipe_of(one, random_model("LlamaForCausalLM", seed=2, near=one))
    found, built = merged(recipe, tmp_path), list[object]()
    original = merge_moments.build
    monkeypatch.setattr(merge_moments, "build", lambda *args: built.append(args[0]) or original(*args))
    resident = ResidentModel(opened(recipe, tmp_path / "cache"), str(one), example=recipe)
    resident.materialize(recipe)
    state = resident.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())
    assert not built
    other = recipe_of(*map(Path, recipe.parents), alpha=0.5)
    again = merged(other, tmp_path / "other")
    assert len(built) == 1, "other numbers have statistics of their own"
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 1
    assert not torch.equal(again["model.layers.1.mlp.down_proj.weight"], found["model.layers.1.mlp.down_proj.weight"])


def test_one_layer_with_shared_embeddings_is_regmean(random_model: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    one = random_model("LlamaForCausalLM", seed=1, num_hidden_layers=1, tie_word_embeddings=True)
    two = random_model("LlamaForCausalLM", seed=2, near=one)
    shared, own = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    own["model.embed_tokens.weight"] = shared["model.embed_tokens.weight"]
    save_file(own, two / "model.safetensors", metadata={"format": "pt"})
    found = merged(recipe_of(one, two), tmp_path / "plus")
    expected = merged(recipe_of(one, two, method="regmean"), tmp_path / "plain")
    for name, tensor in expected.items():  # but for the rounding of the mean of equal embeddings
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def written(world: World, name: str = "plus.yaml", **changes: Any) -> Path:
    folder = world().parent
    (folder / "texts.txt").write_text("abcd?\n\nghij=b\n\nabc.def\n\nfe?dc=ba")
    models = [{"model": f"./expert{i}", "parameters": {"weight": w}} for i, w in zip((1, 2), WEIGHTS, strict=True)]
    data = {"merge_method": METHOD, "models": models, "sample": {"text": "texts.txt"}} | changes
    path = folder / name
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False))
    return path


def test_a_recipe_is_merged_nested_and_listed_in_the_cache(world: World, tmp_path: Path) -> None:
    from evosearch.checkpoints.cache.inventory import inventory

    merge(written(world), tmp_path / "inner", Silent())
    outer = written(
        world,
        "outer.yaml",
        merge_method="linear",
        sample=None,
        models=[{"model": "./plus.yaml", "parameters": {"weight": 1.0}}],
    )
    merge(outer, tmp_path / "outer", Silent())
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("inner", "outer"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    folder = world().parent
    listed = [entry.what for entry in inventory(tmp_path / "cache").entries if entry.kind == "statistics"]
    assert listed == [f"propagated_gram of a merge of {folder}/expert1, {folder}/expert2"]


def test_slices_and_searches_are_refused_by_name(
    world: World, evosearch: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    sources = [{"model": f"./expert{i}", "layer_range": [0, 2]} for i in (1, 2)]
    path = written(world, models=None, slices=[{"sources": sources}])
    code, _, errors = evosearch("merge", path, tmp_path / "out")
    assert code == 2
    assert re.search(r"slices\[0\]: regmean_plus merges whole models.*Name whole models", " ".join(errors.split()))
    for method, key in ((METHOD, "merge_method"), ({"choices": ["linear", METHOD]}, r"merge_method\.choices\[1\]")):
        hole = {"weight": {"search": True}}
        models = [{"model": f"./expert{i}", "parameters": hole} for i in (1, 2)]
        spec = world("plus", recipe={"merge_method": method, "models": models, "sample": {"text": "texts.txt"}})
        code, out, errors = evosearch("check", spec, "--no-dry-run")
        assert code == 2
        assert re.search(rf"{key}: regmean_plus cannot be searched.*Search regmean", " ".join((out + errors).split()))


def test_statistics_that_are_not_finite_are_refused_before_they_are_used(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    one = random_model("LlamaForCausalLM", seed=1)
    recipe = recipe_of(one, random_model("LlamaForCausalLM", seed=2, near=one, spread=1e15))
    with pytest.raises(CheckpointError, match="are not finite"):
        merged(recipe, tmp_path)
    assert not list((tmp_path / "cache" / "statistics").iterdir())
