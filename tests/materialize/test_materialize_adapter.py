"""Export of merges as LoRA adapters, which peft loads with the reported error."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError, RecipeError
from evosearch.materialize.as_adapter import AdapterReport, write_adapter
from evosearch.materialize.low_rank import factorize
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.recipe.schema import Recipe

LINEAR_ONLY = [{"filter": "norm", "value": 0}, {"filter": "embed_tokens", "value": 0}, {"value": 0.6}]


def make_recipe(models: Mapping[str, Checkpoint], weight: Any = 0.6, **changes: Any) -> Recipe:
    base, *parents = models
    entries = [{"model": parent, "parameters": {"weight": weight}} for parent in parents]
    return Recipe.model_validate({"merge_method": "task_arithmetic", "base_model": base, "models": entries} | changes)


def by_peft(base: str, adapter: Path) -> dict[str, torch.Tensor]:
    """Load the base and merge the adapter with peft, whose warnings about missing tensors fail the test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # raised inside of peft
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        assert isinstance(model, PeftModel)
        return dict(model.merge_and_unload().state_dict())


def check(report: AdapterReport, recipe: Recipe, models: Mapping[str, Checkpoint], tmp_path: Path) -> None:
    """Compare peft's merge and ours of the written adapter with the recipe's merge and the reported error."""
    base = recipe.references()[0]
    write_checkpoint(recipe, models, tmp_path / "merged", base)
    merged, peft = Checkpoint.open(tmp_path / "merged"), by_peft(base, report.out)
    ours = apply_adapter(models[base], report.out, "x")
    lost = size = 0.0
    live = {name: merged.family.placement(name, merged.config) for name in merged.tensors}
    peft = {name: peft[place.parameter][place.index] for name, place in live.items()}
    for name in merged.tensors:
        expected, theta = merged.load(name), models[base].load(name)
        torch.testing.assert_close(ours.load(name).float(), peft[name], rtol=1e-6, atol=1e-6)
        if name in report.errors:
            off, whole = float((peft[name] - expected).norm()), float((expected - theta).norm())
            assert off == pytest.approx(report.errors[name] * whole, abs=2e-5 * whole)
            lost, size = lost + off**2, size + whole**2
        else:
            torch.testing.assert_close(peft[name], expected, rtol=1e-5, atol=1e-7)
    assert math.sqrt(lost / (size or 1)) == pytest.approx(report.error, abs=2e-5)


@pytest.mark.parametrize("rank", [1, 6, 64])
def test_the_report_has_the_error_of_each_linear_layer(rank, untied, tmp_path):
    recipe = make_recipe(untied, LINEAR_ONLY)
    report = write_adapter(recipe, untied, tmp_path / "out", rank)
    check(report, recipe, untied, tmp_path)
    for name, found in report.ranks.items():
        assert found == min(rank, *untied[recipe.references()[0]].tensors[name].shape)
    assert (report.error < 1e-5) == (rank == 64)
    assert report.bytes == (report.out / "adapter_model.safetensors").stat().st_size
    config = json.loads((report.out / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    )
    assert config["base_model_name_or_path"] == "base"
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert bool(config["rank_pattern"]) == (rank == 64)  # only then do some weights have fewer rows
    assert config["modules_to_save"] is None


def test_larger_ranks_lose_less(untied, tmp_path):
    recipe = make_recipe(untied, LINEAR_ONLY)
    errors = [write_adapter(recipe, untied, tmp_path / str(rank), rank).error for rank in (1, 4, 16)]
    assert 1 > errors[0] > errors[1] > errors[2] > 0.01


def test_a_merge_of_adapters_comes_back_exactly_at_its_own_rank(untied, tmp_path):
    base = next(iter(untied))
    models = {base: untied[base]}
    for seed, (rank, modules) in enumerate(((2, ["q_proj", "down_proj"]), (3, ["q_proj"]))):
        models[f"{base}+{seed}"] = apply_adapter(
            untied[base], make_lora(tmp_path / str(seed), untied[base], rank, modules, seed), f"{base}+{seed}"
        )
    recipe = make_recipe(models, 0.7)
    report = write_adapter(recipe, models, tmp_path / "out", 16)
    assert set(report.ranks.values()) == {2, 5}
    assert {name.split(".")[-2]: rank for name, rank in report.ranks.items()} == {"q_proj": 5, "down_proj": 2}
    assert report.error < 1e-4
    check(report, recipe, models, tmp_path)


def make_lora(folder: Path, base: Checkpoint, rank: int, modules: list[str], seed: int) -> Path:
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, info in base.tensors.items():
        if name.split(".")[-2] in modules:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn((rank, info.shape[1]), generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn((info.shape[0], rank), generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 1, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_single_layers_are_named_by_their_full_path(untied, tmp_path):
    weight = [{"filter": "layers.2.mlp.up_proj", "value": 1}, {"value": 0}]
    recipe = make_recipe(untied, weight)
    report = write_adapter(recipe, untied, tmp_path / "out", 4)
    config = json.loads((report.out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.2.mlp.up_proj"]
    check(report, recipe, untied, tmp_path)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_everything_else_is_stored_in_full_if_requested(kind, request, tmp_path):
    models = request.getfixturevalue(kind)
    recipe = make_recipe(models)
    with pytest.raises(
        RecipeError,
        match=r"changes tensors that LoRA does not cover: model\.embed_tokens\.weight \(12800 bytes\), "
        r".*and 2 more, 13952 bytes in total\. Store them in full with --save-modules",
    ):
        write_adapter(recipe, models, tmp_path / "out", 8)
    assert not (tmp_path / "out").exists()
    report = write_adapter(recipe, models, tmp_path / "out", 8, save_modules=True)
    assert set(report.saved) == set(models[recipe.references()[0]].tensors) - report.ranks.keys()
    check(report, recipe, models, tmp_path)


def make_models(model: torch.nn.Module, folder: Path) -> dict[str, Checkpoint]:
    models = {}
    for name in ("base", "a", "b"):
        model.save_pretrained(folder / name)
        models[str(folder / name)] = Checkpoint.open(folder / name)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return models


def test_layers_that_store_their_weights_the_other_way_round_and_biases(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    models = make_models(GPT2LMHeadModel(config), tmp_path)
    recipe = make_recipe(
        models, [{"filter": "c_attn", "value": 0.5}, {"filter": "ln_f.bias", "value": 1}, {"value": 0}]
    )
    report = write_adapter(recipe, models, tmp_path / "out", 40, save_modules=True)
    check(report, recipe, models, tmp_path)
    assert len(report.ranks) == 2
    assert report.saved == (
        "transformer.h.0.attn.c_attn.bias",
        "transformer.h.1.attn.c_attn.bias",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    )


def test_routers_are_stored_in_full_and_experts_refused(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    models = make_models(MixtralForCausalLM(MixtralConfig(**sizes, **heads)), tmp_path)
    recipe = make_recipe(models)
    with pytest.raises(
        RecipeError,
        match=r"the model stacks with others, which is not supported: .*experts\.0\.w1\.weight \(1536 bytes",
    ):
        write_adapter(recipe, models, tmp_path / "out", 4, save_modules=True)
    recipe = make_recipe(models, [{"filter": "experts", "value": 0}, {"value": 0.6}])
    report = write_adapter(recipe, models, tmp_path / "out", 4, save_modules=True)
    assert "model.layers.0.block_sparse_moe.gate.weight" in report.saved
    assert {name.split(".")[-2] for name in report.ranks} == {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}
    check(report, recipe, models, tmp_path)


def test_norms_alone_are_an_adapter_too(untied, tmp_path):
    recipe = make_recipe(untied, [{"filter": "layernorm", "value": 1}, {"value": 0}])
    report = write_adapter(recipe, untied, tmp_path / "out", 4, save_modules=True)
    assert list(report.ranks.values()) == [1]  # zeros: peft requires at least one LoRA
    assert (report.error, len(report.saved)) == (0.0, 8)
    check(report, recipe, untied, tmp_path)


def test_the_same_recipe_gives_the_same_file(untied, tmp_path):
    recipe = make_recipe(untied, LINEAR_ONLY)
    for name in ("one", "two"):
        torch.manual_seed(len(name))
        torch.rand(5)
        write_adapter(recipe, untied, tmp_path / name, 4)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_recipes_that_are_not_adapters_of_their_base_are_refused(untied, tmp_path):
    base, first, *_ = untied
    with pytest.raises(RecipeError, match="the merged model equals its base"):
        write_adapter(make_recipe(untied, 0), untied, tmp_path / "out", 4)
    lora = make_lora(tmp_path / "lora", untied[base], 2, ["q_proj"], 0)
    models = {f"{base}+lora": apply_adapter(untied[base], lora, f"{base}+lora"), first: untied[first]}
    with pytest.raises(RecipeError, match=r"its base would be '.*base\+lora', which is not an unmodified checkpoint"):
        write_adapter(make_recipe(models), models, tmp_path / "out", 4)
    slices = [{"sources": [{"model": base, "layer_range": [0, 2]}]}]
    stacked = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    with pytest.raises(RecipeError, match="layers differ from its base"):
        write_adapter(stacked, untied, tmp_path / "out", 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="out: exists and is not an empty folder"):
        write_adapter(make_recipe(untied, LINEAR_ONLY), untied, tmp_path / "out", 4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_large_matrices_are_factored_as_well_by_projection():
    generator = torch.Generator().manual_seed(0)
    spectrum = 0.9 ** torch.arange(60.0)
    u, v = (torch.linalg.qr(torch.randn((size, 60), generator=generator)).Q for size in (1500, 1100))
    delta = (u * spectrum) @ v.T
    found = factorize(delta, 20, 0.0, torch.Generator().manual_seed(1))
    best = float((spectrum[20:] ** 2).sum() ** 0.5)  # Eckart and Young: no matrix of rank 20 is closer
    assert found.rank == 20
    assert best * 0.9999 < found.lost < best * 1.001
    assert found.size == pytest.approx(float(delta.norm()), rel=1e-5)


def test_rounding_errors_get_no_rank():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((3, 40), generator=generator), torch.randn((50, 3), generator=generator)
    noise = 1e-3
    delta = b @ a + noise * torch.randn((50, 40), generator=generator)
    assert factorize(delta, 16, noise, generator).rank == 3
    assert factorize(delta, 16, 0.0, generator).rank == 16
    nothing = factorize(torch.zeros(4, 6), 3, 0.0, generator)
    assert (nothing.rank, nothing.error) == (1, 0.0)
    assert torch.equal(nothing.b @ nothing.a, torch.zeros(4, 6))
