"""Adapters in a real search: as part of a parent, `model+adapter`, and as an export of a candidate."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.reader import Checkpoint
from evosearch.recipe.files import load
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.service.run import run


def make_lora(folder: Path) -> None:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(3):
        prefix = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn((2, 48), generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn((32, 2), generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_a_search_with_an_adapter_is_exported_as_one(world, evosearch, tmp_path):
    make_lora(tmp_path / "specs" / "lora")
    weight = {"weight": {"low": 0.0, "high": 1.5}}
    models = [{"model": model, "parameters": weight} for model in ("./expert1", "./base+./lora")]
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": models}
    spec = world(budget={"candidates": 6}, recipe=recipe)
    run(spec, Silent())
    code, _, err = evosearch("export", "world", "--candidate", "uniform", "--format", "mergekit", "-o", tmp_path / "m")
    assert code == 0, err
    assert f"- model: {spec.parent}/base+{spec.parent}/lora\n" in (tmp_path / "m").read_text()

    out = tmp_path / "lora"
    command = ("export", "world", "--candidate", "uniform", "-o", out)
    code, _, err = evosearch(*command, "--rank", 4)
    assert code == 2
    assert "--rank: not valid with --format recipe" in err
    code, _, err = evosearch(*command, "--format", "adapter", "--rank", 0)
    assert code == 2
    assert "--rank: got 0. A positive integer" in err
    code, _, err = evosearch(*command, "--format", "adapter")
    assert code == 2
    assert "--format adapter: changes tensors that LoRA does not cover" in err
    assert "Store them in full with --save-modules" in err
    assert not out.exists()

    code, text, err = evosearch(*command, "--format", "adapter", "--rank", 4, "--save-modules", "--json")
    assert code == 0, err
    adapter = json.loads(text)["adapter"]
    assert 0 < adapter["error"] < 1
    assert {entry["rank"] for entry in adapter["tensors"].values()} == {4}
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
    ]
    assert isinstance(load(out / "recipe.yaml"), Recipe)
    assert str(tmp_path) not in (out / "adapter_config.json").read_text()
    base = Checkpoint.open(spec.parent / "base")
    apply_adapter(base, out, "x")  # the export can be read
    assert base.tensors.keys() == adapter["tensors"].keys() | set(adapter["saved"])

    code, _, err = evosearch(*command, "--format", "adapter", "--save-modules")
    assert code == 2
    assert "already exists" in err
    code, text, err = evosearch(*command, "--format", "adapter", "--save-modules", "--overwrite")
    assert code == 0, err
    assert "of the weight changes, at most" in " ".join(text.split())
    assert "tensors stored in full" in " ".join(text.split())
