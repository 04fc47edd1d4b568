"""Routes as mergekit slices: mergekit computes the same weights, or the export is rejected."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import RecipeError
from evosearch.materialize.forward import differences
from evosearch.materialize.layout import output
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import to_mergekit
from evosearch.recipe.schema import Recipe

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

torch.set_num_threads(1)
TIED = ("GPT2LMHeadModel", "GemmaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Olmo2ForCausalLM")
UNTIED = ("LlamaForCausalLM", "Olmo2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM")
HOPS = ((0, 0, 1.0), (0, 1, 1.0), (1, 1, 0.7), (1, 2, 1.0), (1, 2, 1.0), (0, 0, 1.6), (0, 2, 0.9))
Two = dict[str, Checkpoint]


@pytest.fixture
def two(random_model: Callable[..., Path]) -> Callable[..., Two]:
    def make(architecture: str, **changes: object) -> Two:
        folders = [random_model(architecture, seed=seed, **changes) for seed in (0, 1)]
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}

    return make


def route(models: Two, *hops: tuple[int, int, float], **extra: object) -> Recipe:
    names = list(models)
    listed = [{"model": names[index], "layer": layer, "scale": scale} for index, layer, scale in hops]
    return Recipe.model_validate({"routing": {"hops": listed}} | extra)


def exported(recipe: Recipe, models: Two) -> str:
    return to_mergekit(recipe, output(recipe, models).shape, specs())


def by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("architecture", "tied"), [*((name, True) for name in TIED), *((name, False) for name in UNTIED)]
)
def test_mergekit_makes_our_weights(architecture, tied, two, tmp_path):
    models = two(architecture, tie_word_embeddings=tied)
    recipe = route(models, *HOPS)
    write_checkpoint(recipe, models, tmp_path / "ours", donor_of(recipe))
    theirs, ours = by_mergekit(exported(recipe, models), tmp_path / "theirs"), Checkpoint.open(tmp_path / "ours")
    assert ours.tensors.keys() == theirs.keys()
    for name in ours.tensors:
        torch.testing.assert_close(theirs[name], ours.load(name), rtol=2.5e-7, atol=0)  # w · (1/C) for w / C
    made = Checkpoint.open(tmp_path / "theirs")
    assert made.shape == ours.shape
    assert differences(made.config, ours.config) == {}


def test_layers_in_a_row_are_one_slice(two):
    models = two("LlamaForCausalLM")
    data = yaml.safe_load(exported(route(models, *HOPS), models))
    assert [part["sources"][0]["layer_range"] for part in data["slices"]] == [[0, 2], [1, 3], [2, 3], [0, 1], [2, 3]]
    assert "parameters" not in data["slices"][0]["sources"][0]
    scales = data["slices"][1]["sources"][0]["parameters"]["scale"]
    assert scales == [
        {"filter": "self_attn.o_proj", "value": 1 / 0.7},
        {"filter": "mlp.down_proj", "value": 1 / 0.7},
        {"value": 1.0},
    ]


@pytest.mark.parametrize(
    ("architecture", "changes", "hops", "where", "what"),
    [
        ("LlamaForCausalLM", {}, HOPS[:3], "recipe.routing.hops[2].model", "final norm and head"),
        ("Gemma2ForCausalLM", {}, HOPS, "recipe.routing.hops", "multiply by 1 + weight"),
        ("Qwen2ForCausalLM", {}, HOPS, "recipe.routing.hops", "lists per layer"),
        ("LlamaForCausalLM", {"attention_bias": True}, HOPS, "recipe.models", "drops the biases"),
    ],
)
def test_what_mergekit_cannot_make_is_refused_by_name(architecture, changes, hops, where, what, two):
    models = two(architecture, **changes)
    with pytest.raises(RecipeError, match=f"^{re.escape(where)}: .*{re.escape(what)}.*Export the merged checkpoint"):
        exported(route(models, *hops), models)
