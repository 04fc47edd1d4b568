"""Comparison with mergekit, tensor by tensor, in the families that it supports.

mergekit 0.1.5 requires the masks of old GPT-NeoX files and stacked experts on disk; it supports only tied heads for
Gemma, and only untied ones for Phi and Phi-3.
"""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.search.space.space import SearchSpace

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

EITHER = (
    *("GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    *("Olmo2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
)
TIED = (*EITHER, "GemmaForCausalLM")
UNTIED = (*EITHER, "PhiForCausalLM", "Phi3ForCausalLM")
METHODS = ("linear", "task_arithmetic", "ties")


def by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("architecture", "tied"), [*((name, True) for name in TIED), *((n, False) for n in UNTIED)])
def test_tensor_by_tensor(architecture, tied, random_model, tmp_path):
    base = random_model(architecture, tie_word_embeddings=tied)
    folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    shape = models[str(base)].shape
    entries = [
        {"model": str(folders[1]), "parameters": {"weight": [0.2, 0.9, 0.6]}},
        {"model": str(folders[2]), "parameters": {"weight": [{"filter": "mlp", "value": 0.3}, {"value": 0.8}]}},
    ]
    for method in METHODS:
        data = {"merge_method": method, "models": entries}
        data |= {} if method == "linear" else {"base_model": str(base)}
        data |= {"parameters": {"density": 0.4}} if method == "ties" else {}
        recipe = Recipe.model_validate(data)
        write_checkpoint(recipe, models, tmp_path / "ours" / method, str(folders[1 if method == "linear" else 0]))
        ours = load_file(tmp_path / "ours" / method / "model.safetensors")
        theirs = by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "theirs" / method)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype == torch.float32
            torch.testing.assert_close(
                tensor, theirs[name], rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize(("architecture", "tied"), [*((name, True) for name in TIED), *((n, False) for n in UNTIED)])
def test_a_number_for_every_tensor_or_module(architecture, tied, random_model, tmp_path):
    base = random_model(architecture, tie_word_embeddings=tied)
    folders = [base, *(random_model(architecture, seed=seed, near=base, spread=0.05) for seed in (1, 2))]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    shape = models[str(base)].shape
    for per in ("tensor", "module"):
        holes = {"weight": {"low": 0.0, "high": 1.0, "per": per}}
        entries = [{"model": str(folder), "parameters": holes} for folder in folders[1:]]
        written = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries}
        space = SearchSpace.from_template(written, shape, specs())
        numbers = torch.rand(len(space.dimensions), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        recipe = space.fill({d.name: value for d, value in zip(space.dimensions, numbers.tolist(), strict=True)})
        write_checkpoint(recipe, models, tmp_path / "ours" / per, str(base))
        ours = load_file(tmp_path / "ours" / per / "model.safetensors")
        theirs = by_mergekit(to_mergekit(recipe, shape, specs()), tmp_path / "theirs" / per)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(
                tensor, theirs[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
