"""Git Re-Basin: planted permutations are recovered, and the function is preserved."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import RecipeError
from evosearch.merging.registry import specs
from evosearch.merging.symmetries import Permutation, axes_of, of_heads
from evosearch.merging.weight_matching import Pair, match, objective
from evosearch.recipe.files import load
from evosearch.recipe.mergekit import to_mergekit
from evosearch.search.progress import Silent
from evosearch.service.merge import merge
from evosearch.setup.models import open_models

torch.set_num_threads(1)
FAMILIES = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM"]
IDS = torch.tensor([[3, 7, 9, 11, 20, 5]])


def planted(one: Checkpoint, seed: int = 1) -> Permutation:
    """A random permutation of every group of a model with 4 heads of size 8, in 2 groups."""
    generator = torch.Generator().manual_seed(seed)
    found = {"residual": torch.randperm(32, generator=generator)}
    for layer in range(one.shape.num_layers):
        found[f"hidden.{layer}"] = torch.randperm(24, generator=generator)
        keys = torch.randperm(2, generator=generator)
        queries = torch.cat([2 * key + torch.randperm(2, generator=generator) for key in keys])
        found |= {f"keys.{layer}": of_heads(keys, 8), f"queries.{layer}": of_heads(queries, 8)}
    return Permutation(found)


def permuted(folder: Path, permutation: Permutation, out: Path, noise: float = 0.0) -> Path:
    """Write a model in another order of its units."""
    one, generator = Checkpoint.open(folder), torch.Generator().manual_seed(9)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out)
    tensors = {}
    for name in one.tensors:
        tensor = one.load(name)
        axes = axes_of(name, tensor.shape, one.shape.head_size)
        assert axes is not None, name
        moved = permutation.apply(tensor, axes)
        tensors[name] = (moved + noise * torch.randn(moved.shape, generator=generator)).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


@pytest.mark.parametrize("method", ["rebasin_weights", "rebasin_activations", "activations alone"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_planted_permutation_is_recovered_and_keeps_the_function(
    architecture: str, method: str, world: Callable[..., Path], random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = random_model(architecture, spread=0.3)
    load_tokenizer(world().parent / "base").save_pretrained(base)
    one = Checkpoint.open(base)
    plan = planted(one)
    other = permuted(base, plan, tmp_path / "other")
    torch.testing.assert_close(logits(other), logits(base), rtol=1e-4, atol=1e-4)
    assert not torch.equal(
        Checkpoint.open(other).load("model.embed_tokens.weight"), one.load("model.embed_tokens.weight")
    )
    path = tmp_path / "recipe.yaml"
    data: dict[str, Any] = {"merge_method": method, "base_model": str(base), "models": [{"model": str(other)}]}
    if method != "rebasin_weights":
        data |= {"merge_method": "rebasin_activations", "parameters": {"refine": method == "rebasin_activations"}}
        draw = random.Random(3)
        texts = "\n\n".join("".join(draw.choices("abcdefghij=?.", k=30)) for _ in range(20))
        (tmp_path / "texts.txt").write_text(texts)
        data["sample"] = {"text": "texts.txt"}
    path.write_text(yaml.safe_dump(data))
    merge(path, tmp_path / "aligned", Silent())
    for name, tensor in load_file(tmp_path / "aligned" / "model.safetensors").items():
        assert torch.equal(tensor, one.load(name)), name


def test_it_is_recovered_under_noise_and_improves_the_objective(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = random_model("LlamaForCausalLM", spread=0.3)
    one, plan = Checkpoint.open(base), planted(Checkpoint.open(base), 4)
    other = Checkpoint.open(permuted(base, plan, tmp_path / "other", noise=0.05))
    pairs = [
        Pair(axes, lambda n=name: one.load(n), lambda n=name: other.load(n))
        for name, info in one.tensors.items()
        if (axes := axes_of(name, info.shape, 8)) is not None
    ]
    found = match(pairs, 8)
    for group, indices in plan.indices.items():
        assert torch.equal(found.indices[group], indices.argsort()), group
    assert objective(pairs, found) > objective(pairs, Permutation({}))


def test_an_unrelated_model_keeps_its_function(random_model: Callable[..., Path], tmp_path: Path) -> None:
    base, other = random_model("LlamaForCausalLM"), random_model("LlamaForCausalLM", seed=5)
    path = tmp_path / "recipe.yaml"
    data = {"merge_method": "rebasin_weights", "base_model": str(base), "models": [{"model": str(other)}]}
    path.write_text(yaml.safe_dump(data))
    merge(path, tmp_path / "aligned", Silent())
    torch.testing.assert_close(logits(tmp_path / "aligned"), logits(other), rtol=1e-4, atol=1e-4)
    shape = open_models(load(path), str(path), Silent()).shape
    with pytest.raises(
        RecipeError, match=r"no equivalent of the method 'rebasin_weights'.*Export the merged checkpoint"
    ):
        to_mergekit(load(path), shape, specs())


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "MixtralForCausalLM"])
def test_an_architecture_without_known_symmetries_is_refused(
    architecture: str, random_model: Callable[..., Path], tmp_path: Path, evosearch: Callable[..., tuple[int, str, str]]
) -> None:
    base = random_model(architecture)
    path = tmp_path / "recipe.yaml"
    data: dict[str, Any] = {"merge_method": "rebasin_weights", "base_model": str(base)}
    data["models"] = [{"model": str(random_model(architecture, seed=2))}]
    path.write_text(yaml.safe_dump(data))
    code, _, errors = evosearch("merge", path, tmp_path / "out")
    assert code in (1, 2)
    assert "the symmetries of" in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


def test_an_aligned_model_is_merged_by_name_in_one_file(random_model: Callable[..., Path], tmp_path: Path) -> None:
    base = random_model("LlamaForCausalLM", spread=0.3)
    other = permuted(base, planted(Checkpoint.open(base)), tmp_path / "other")
    documents = [
        {
            "name": "aligned",
            "merge_method": "rebasin_weights",
            "base_model": str(base),
            "models": [{"model": str(other)}],
        },
        {
            "merge_method": "slerp",
            "base_model": str(base),
            "models": [{"model": "aligned"}],
            "parameters": {"t": 0.5},
        },
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    merge(path, tmp_path / "out", Silent())
    torch.testing.assert_close(logits(tmp_path / "out"), logits(base), rtol=1e-4, atol=1e-4)
