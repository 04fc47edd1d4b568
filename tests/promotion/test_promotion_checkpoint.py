"""An exported checkpoint is the merge itself, written by the real writer."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evosearch.checkpoints.reader import Checkpoint
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.promotion.export_files import Origin, export
from evosearch.recipe.files import load
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Checkpoint]:
    opened = {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            bos_token_id=0,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        opened[str(tmp_path / name)] = Checkpoint.open(tmp_path / name)
    return opened


def test_the_folder_holds_the_merge_and_its_recipe(parents: dict[str, Checkpoint], tmp_path: Path) -> None:
    first, second = parents
    models = [
        {"model": first, "parameters": {"weight": 0.25}},
        {"model": second, "parameters": {"weight": 0.75}},
    ]
    recipe = Recipe.model_validate({"merge_method": "linear", "models": models})

    def write(recipe: Recipe, out: Path) -> None:
        write_checkpoint(recipe, parents, out, donor=first)

    provenance = Origin("night", "5e" * 32, "17", "ab" * 32, {first: "cd" * 32})
    out = export(recipe, "checkpoint", tmp_path / "out" / "winner", provenance, write_checkpoint=write)
    merged = Checkpoint.open(out)
    for name in merged.shape.by_name:
        expected = 0.25 * parents[first].load(name) + 0.75 * parents[second].load(name)
        torch.testing.assert_close(merged.load(name), expected, rtol=0, atol=1e-7)
    assert load(out / "recipe.yaml") == recipe
    comments = [line for line in (out / "recipe.yaml").read_text().splitlines() if line.startswith("#")]
    assert comments
    assert str(tmp_path) not in " ".join(comments)
    assert [path.name for path in out.parent.iterdir()] == ["winner"]
