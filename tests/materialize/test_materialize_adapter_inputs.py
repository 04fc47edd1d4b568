"""Recipes with `model+adapter`: equal results in memory, on disk and with mergekit."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.inputs import Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge


def make_lora(folder: Path, base: Checkpoint, modules: list[str], seed: int, **config: object) -> Path:
    """A random LoRA of rank 3 on every layer's `modules`."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, info in base.tensors.items():
        if name.split(".")[-2] in modules:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = 0.1 * torch.randn((3, info.shape[1]), generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn((info.shape[0], 3), generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": modules, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


@pytest.fixture
def recipe(untied, tmp_path) -> Recipe:
    base, parent, *_ = untied
    one = make_lora(tmp_path / "one", untied[base], ["q_proj", "v_proj"], 1)
    two = make_lora(tmp_path / "two", untied[base], ["up_proj", "v_proj", "lm_head"], 2, use_rslora=True)
    models = [
        {"model": f"{base}+{one}", "parameters": {"weight": [0.2, 0.9, 0.4]}},
        {"model": f"{base}+{two}", "parameters": {"weight": 0.7}},
        {"model": f"{parent}+{one}", "parameters": {"weight": 0.3}},
    ]
    return Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": base, "models": models})


def by_us(recipe: Recipe, tmp_path: Path) -> dict[str, torch.Tensor]:
    write_checkpoint(recipe, Opener(tmp_path).inputs(recipe), tmp_path / "ours", recipe.references()[0])
    return load_file(tmp_path / "ours" / "model.safetensors")


def test_mergekit_gives_the_same_weights(recipe, untied, tmp_path):
    ours = by_us(recipe, tmp_path)
    text = to_mergekit(
        recipe, next(iter(untied.values())).shape, specs(), adapted=[entry.model for entry in recipe.models]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = MergeConfiguration.model_validate(yaml.safe_load(text))
        options = MergeOptions(
            device="cpu",
            quiet=True,
            copy_tokenizer=False,
            write_model_card=False,
            lora_merge_cache=str(tmp_path / "cache"),
            lora_merge_dtype="float32",
        )
        run_merge(config, str(tmp_path / "theirs"), options)
    theirs = {name: t for file in (tmp_path / "theirs").glob("*.safetensors") for name, t in load_file(file).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-6)


def test_in_memory_and_on_disk_are_the_same_bits(recipe, tmp_path):
    inputs = Opener(tmp_path).inputs(recipe)
    resident = ResidentModel(inputs, recipe.references()[0])
    ours = by_us(recipe, tmp_path)
    for _ in range(2):  # the second time from the cache
        resident.materialize(recipe)
        live = dict(resident.model.named_parameters())
        assert live.keys() == ours.keys()
        assert all(torch.equal(live[name], tensor) for name, tensor in ours.items())


def test_an_adapter_is_a_task_vector(recipe, untied, tmp_path):
    """θ₀ + w·(θ₀ + ΔW − θ₀) is θ₀ + w·ΔW."""
    base, entry = recipe.base_model, recipe.models[1]
    alone = Recipe.model_validate(
        recipe.to_dict() | {"models": [{"model": entry.model, "parameters": {"weight": 0.7}}]}
    )
    ours, stored = by_us(alone, tmp_path), load_file(tmp_path / "two" / "adapter_model.safetensors")
    name = "model.layers.2.mlp.up_proj"
    a, b = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = untied[base].load(f"{name}.weight") + 0.7 * 5 / 3**0.5 * b @ a
    torch.testing.assert_close(ours[f"{name}.weight"], expected, rtol=0, atol=1e-6)
    untouched = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(ours[untouched], untied[base].load(untouched))
