"""Candidates of a search over the models of slices: equal bytes in memory and on disk, equal weights from mergekit."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.layout import output
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.merging.registry import specs
from evosearch.recipe.mergekit import from_mergekit, to_mergekit
from evosearch.recipe.schema import Recipe
from evosearch.search.space.space import SearchSpace
from evosearch.search.space.template import frame

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "numpy.core is deprecated", DeprecationWarning)  # mergekit.io.lazy_unpickle
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

Family = dict[str, Checkpoint]


def by_mergekit(text: str, out: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = MergeOptions(device="cpu", quiet=True, copy_tokenizer=False, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def candidates(family: Family, out_dtype: str) -> tuple[Recipe, list[Recipe]]:
    """The frame of a search, and candidates: its start, alternating models, and one whose ends differ."""
    base, *models = family
    hole = {"choices": models, "per": "layer"}
    template = {
        "merge_method": "passthrough",
        "base_model": base,
        "slices": [{"sources": [{"model": hole, "layer_range": [0, 4]}]}],
        "out_dtype": out_dtype,
    }
    space = SearchSpace.from_template(template, family[base].shape, specs(), "night.yaml: recipe")
    picked = (("a", "a", "a", "a"), ("a", "b", "c", "a"), ("c", "b", "b", "a"))
    names = [dimension.name for dimension in space.dimensions]
    return frame(template, "night.yaml: recipe"), [space.fill(dict(zip(names, one, strict=True))) for one in picked]


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_memory_disk_and_mergekit_agree_on_every_tensor(
    kind: str, out_dtype: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    family: Family = request.getfixturevalue(kind)
    example, recipes = candidates(family, out_dtype)
    resident = ResidentModel(family, donor_of(example), example=example)
    for number, recipe in enumerate(recipes):
        home = tmp_path / str(number)
        used = {name: family[name] for name in recipe.references()}
        write_checkpoint(recipe, used, home / "ours", donor_of(recipe))
        ours = load_file(home / "ours" / "model.safetensors")
        assert resident.takes(recipe)
        resident.materialize(recipe)
        live = dict(resident.model.named_parameters())
        for name, tensor in ours.items():
            assert torch.equal(live[name], tensor.float()), name
        text = to_mergekit(recipe, output(recipe, used).shape, specs())
        theirs = by_mergekit(text, home / "theirs")
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
        assert from_mergekit(text, "export.yaml", specs()).slices == recipe.slices


def test_every_layer_is_that_of_its_model(untied: Family, tmp_path: Path) -> None:
    _, (_, _, recipe) = candidates(untied, "float32")
    write_checkpoint(recipe, {name: untied[name] for name in recipe.references()}, tmp_path / "out", donor_of(recipe))
    base, a, b, c = untied
    merged = load_file(tmp_path / "out" / "model.safetensors")
    home = {"model.embed_tokens.weight": c, "model.norm.weight": a, "lm_head.weight": a}
    home |= {f"model.layers.{layer}.mlp.up_proj.weight": model for layer, model in enumerate((c, b, b, a))}
    for name, model in home.items():
        assert torch.equal(merged[name], untied[model].load(name)), name
        assert not torch.equal(merged[name], untied[base].load(name)), name
