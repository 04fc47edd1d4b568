"""Inputs of routes: merged and adapted models, loaded once; models that cannot be routed are rejected by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CandidateError, CheckpointError, RecipeError
from evosearch.materialize.as_adapter import write_adapter
from evosearch.materialize.inputs import Opener
from evosearch.materialize.on_disk import write_checkpoint
from evosearch.materialize.plan import donor_of
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe import files
from evosearch.recipe.schema import Recipe

torch.set_num_threads(1)
DOWN, UP = "mlp.down_proj.weight", "mlp.up_proj.weight"


def route(*hops: tuple[str, int] | tuple[str, int, float], **extra: object) -> Recipe:
    listed = [dict(zip(("model", "layer", "scale"), hop, strict=False)) for hop in hops]
    return Recipe.model_validate({"routing": {"hops": listed}} | extra)


def written(recipe: Recipe, inputs: dict[str, Checkpoint], out: Path) -> Checkpoint:
    write_checkpoint(recipe, inputs, out, donor_of(recipe))
    return Checkpoint.open(out)


def check_live(recipe: Recipe, inputs: dict[str, Checkpoint], exported: Checkpoint) -> ResidentRoute:
    """Check that the live model has the exported weights, for families with equal names on disk."""
    resident = ResidentRoute(inputs, recipe)
    resident.materialize(recipe)
    weights = dict(resident.model.named_parameters(remove_duplicate=False))
    for name in exported.tensors:
        assert torch.equal(weights[name].data, exported.load(name).float()), name
    return resident


def lora(folder: Path, base: Checkpoint, module: str, seed: int) -> Path:
    """Write a random LoRA of rank 2 on one kind of module in every layer."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, info in base.tensors.items():
        if name.split(".")[-2] == module:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{prefix}.lora_A.weight"] = 0.1 * torch.randn((2, info.shape[1]), generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = 0.1 * torch.randn((info.shape[0], 2), generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_layers_of_a_merged_model_mix_in(untied, tmp_path):
    base, a, b, c = untied
    merged = f"name: half\nmerge_method: linear\nmodels:\n  - model: {a}\n  - model: {b}\nparameters: {{weight: 0.5}}\n"
    hops = f"[{{model: {c}, layer: 0}}, {{model: half, layer: 3, scale: 1.6}}, {{model: {base}, layer: 1}}]"
    (tmp_path / "night.yaml").write_text(f"{merged}---\nrouting: {{hops: {hops}}}\n")
    recipe = files.load(tmp_path / "night.yaml")
    inputs = Opener(tmp_path / "cache").inputs(recipe)
    exported = written(recipe, inputs, tmp_path / "out")
    half = {
        name: (untied[a].load(f"model.layers.3.{name}") + untied[b].load(f"model.layers.3.{name}")) / 2
        for name in (DOWN, UP)
    }
    torch.testing.assert_close(exported.load(f"model.layers.1.{DOWN}"), half[DOWN] / 1.6, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(exported.load(f"model.layers.1.{UP}"), half[UP], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        exported.load(f"model.layers.2.{DOWN}"), untied[base].load(f"model.layers.1.{DOWN}") / 1.6
    )
    check_live(recipe, inputs, exported)


def test_a_route_is_a_model_that_recipes_may_name(untied, tmp_path):
    base, a, *_ = untied
    inner = route((base, 0), (a, 1, 0.5), (base, 3))
    (tmp_path / "inner.yaml").write_text(inner.to_yaml())
    outer = route((base, 0), (f"{tmp_path}/inner.yaml", 1, 4.0), (f"{tmp_path}/inner.yaml", 2))
    inputs = Opener(tmp_path / "cache").inputs(outer)
    exported = written(outer, inputs, tmp_path / "out")
    torch.testing.assert_close(exported.load(f"model.layers.1.{DOWN}"), untied[a].load(f"model.layers.1.{DOWN}") / 2)
    torch.testing.assert_close(exported.load(f"model.layers.2.{DOWN}"), untied[base].load(f"model.layers.3.{DOWN}") / 2)
    check_live(outer, inputs, exported)


def test_adapted_models_share_what_their_adapters_leave(untied, tmp_path):
    """Two adapters of one base: the live model has their shared weights once."""
    base = next(iter(untied))
    one = lora(tmp_path / "one", untied[base], "down_proj", 1)
    two = lora(tmp_path / "two", untied[base], "q_proj", 2)
    first, second = f"{base}+{one}", f"{base}+{two}"
    recipe = route((first, 0), (second, 0, 0.7), (first, 2), (second, 2))
    inputs = Opener(tmp_path / "cache").inputs(recipe)
    exported = written(recipe, inputs, tmp_path / "out")
    assert not torch.equal(exported.load(f"model.layers.2.{DOWN}"), exported.load(f"model.layers.3.{DOWN}"))
    resident = check_live(recipe, inputs, exported)
    live = dict(resident.model.named_parameters(remove_duplicate=False))
    for slots in ((0, 1), (2, 3)):
        ups, queries = (
            {live[f"model.layers.{slot}.{name}"].data_ptr() for slot in slots}
            for name in (UP, "self_attn.q_proj.weight")
        )
        assert (len(ups), len(queries)) == (1, 2)


def test_a_missing_layer(untied, tmp_path):
    base, a, *_ = untied
    with pytest.raises(RecipeError, match=r"recipe\.routing\.hops\[1\]\.layer: got 4\. .*has layers 0 to 3"):
        written(route((base, 0), (a, 4)), untied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hidden_size": 48}, "is 40×32 in one and 40×48 in the other"),
        ({"intermediate_size": 20}, "is 24×32 in one and 20×32 in the other"),
        ({"tie_word_embeddings": True}, "one ties its output head to its embeddings"),
        ({"vocab_size": 44}, "vocabularies of 40 and 44 tokens"),
    ],
)
def test_models_of_other_sizes(changes, what, random_model, tmp_path):
    folders = [
        random_model("LlamaForCausalLM", **own)
        for own in ({"tie_word_embeddings": False}, {"tie_word_embeddings": False} | changes)
    ]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    one, other = models
    recipe = route((one, 0), (one, 1), (other, 1))
    for refused in (lambda: written(recipe, models, tmp_path / "out"), lambda: ResidentRoute(models, recipe)):
        with pytest.raises(
            CheckpointError, match=rf"recipe\.routing\.hops\[\d\]\.model: .*cannot be in one route: .*{what}"
        ):
            refused()


def test_models_of_other_families(random_model, tmp_path):
    folders = [random_model(name) for name in ("LlamaForCausalLM", "GPT2LMHeadModel")]
    models = {str(folder): Checkpoint.open(folder, str(folder)) for folder in folders}
    one, other = models
    with pytest.raises(RecipeError, match=r"hops\[1\]\.model: .*is a GPT2LMHeadModel, .* starts in a LlamaForCausalLM"):
        written(route((one, 0), (other, 1)), models, tmp_path / "out")


def test_attention_scaled_by_position_cannot_be_routed(random_model, tmp_path):
    folder = random_model("GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True)
    models = {str(folder): Checkpoint.open(folder, str(folder))}
    name = str(folder)
    match = r"recipe\.routing\.hops\[1\]\.layer: .*cannot be routed: .*scale_attn_by_inverse_layer_idx"
    with pytest.raises(RecipeError, match=match):
        written(route((name, 0), (name, 2)), models, tmp_path / "out")
    kept = written(route((name, 0), (name, 1, 1.5), (name, 2)), models, tmp_path / "kept")  # all layers in place
    stem = "transformer.h.1.mlp.c_proj"
    for kind in ("weight", "bias"):
        assert torch.equal(kept.load(f"{stem}.{kind}"), models[name].load(f"{stem}.{kind}") / 1.5)


def test_a_window_that_the_first_model_does_not_have(random_model, tmp_path):
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    folders = [str(random_model("Qwen2ForCausalLM", seed=1)), str(random_model("Qwen2ForCausalLM", seed=2, **windows))]
    mixed = route((folders[0], 0), (folders[1], 0), (folders[1], 2), (folders[0], 2))
    inputs = Opener(tmp_path / "cache").inputs(mixed)
    with pytest.raises(
        RecipeError, match=r"hops\[2\]\.layer: layer 2 of .* sliding window, but the config of"
    ) as error:
        written(mixed, inputs, tmp_path / "out")
    assert "Start the route with" in str(error.value)
    written(route((folders[1], 0), (folders[0], 1), (folders[1], 2)), inputs, tmp_path / "other")


def test_a_gain_beyond_the_bound(untied, tmp_path):
    base = next(iter(untied))
    hops = [(base, 0, 2.0), (base, 1, 2.0), (base, 2, 2.1)]
    with pytest.raises(RecipeError, match=r"recipe\.routing\.hops\[2\]\.scale: got 2\.1.*\[0\.125, 8\]"):
        written(route(*hops), untied, tmp_path / "out")


def test_a_route_cannot_be_an_adapter(untied, tmp_path):
    base = next(iter(untied))
    with pytest.raises(
        RecipeError, match=r"recipe\.routing: an adapter cannot change the order of .*Export a checkpoint"
    ):
        write_adapter(route((base, 0), (base, 1)), untied, tmp_path / "out", rank=4)


@pytest.fixture
def huge(untied, tmp_path) -> Callable[[str], dict[str, Checkpoint]]:
    """Write the base, and a model with a weight that float16 cannot represent."""

    def make(tensor: str) -> dict[str, Checkpoint]:
        base, source = (Path(name) for name in list(untied)[:2])
        shutil.copytree(source, tmp_path / "huge")
        tensors = load_file(tmp_path / "huge" / "model.safetensors")
        tensors[tensor][0, 0] = 5e4 if tensor.endswith(DOWN) else 1e5  # the largest float16 is 65,504
        save_file(tensors, tmp_path / "huge" / "model.safetensors", {"format": "pt"})
        return {str(folder): Checkpoint.open(folder, str(folder)) for folder in (base, tmp_path / "huge")}

    return make


@pytest.mark.parametrize("inner", [DOWN, UP])
def test_weights_that_are_not_finite_once_rounded(inner, huge, tmp_path):
    """Weights overflow when divided by less than one, or undivided; the next route is not affected."""
    models = huge(f"model.layers.2.{inner}")
    base, bad = models
    recipe = route((base, 0), (base, 1), (bad, 2, 0.5), out_dtype="float16")
    resident = ResidentRoute(models, route((base, 0), (bad, 0), out_dtype="float16"))
    for refused in (lambda: written(recipe, models, tmp_path / "out"), lambda: resident.materialize(recipe)):
        with pytest.raises(CandidateError, match=rf"tensor 'model\.layers\.2\.{inner}' is not finite in float16"):
            refused()
    well = route((base, 0), (bad, 1, 0.5), out_dtype="float16")
    resident.materialize(well)
    weights = dict(resident.model.named_parameters(remove_duplicate=False))
    exported = written(well, models, tmp_path / "well")
    for name in exported.tensors:
        assert torch.equal(weights[name].data, exported.load(name).float()), name


def test_another_output_type_is_rounded_again(untied, tmp_path):
    base, a, *_ = untied
    hops = ((base, 0), (a, 1, 0.9), (base, 2, 1.2))
    resident = ResidentRoute(untied, route((base, 0), (a, 0)))
    for dtype in ("bfloat16", "float32", "float16"):
        recipe = route(*hops, out_dtype=dtype)
        resident.materialize(recipe)
        weights = dict(resident.model.named_parameters(remove_duplicate=False))
        exported = written(recipe, untied, tmp_path / dtype)
        for name in exported.tensors:
            assert torch.equal(weights[name].data, exported.load(name).float()), name


def test_computed_in_the_type_that_is_exported(untied, tmp_path):
    """As on a GPU: divide in float32, then round once."""
    base, a, *_ = untied
    recipe = route((base, 0, 0.9), (a, 1, 0.9), (a, 1, 1.7), out_dtype="bfloat16")
    resident = ResidentRoute(untied, route((base, 0), (a, 0), out_dtype="bfloat16"), compute_dtype=torch.bfloat16)
    resident.materialize(recipe)
    weights = dict(resident.model.named_parameters(remove_duplicate=False))
    exported = written(recipe, untied, tmp_path / "out")
    for name in exported.tensors:
        assert weights[name].dtype == exported.load(name).dtype == torch.bfloat16
        assert torch.equal(weights[name].data, exported.load(name)), name
