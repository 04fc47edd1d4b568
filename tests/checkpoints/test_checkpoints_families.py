"""Laws of all families, tested against transformers' own models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evosearch.checkpoints.families.registry import all_families, family_of
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError
from evosearch.materialize.skeleton import build, targets
from evosearch.recipe.shapes import ModelShape, Place

torch.set_num_threads(1)
ARCHITECTURES = sorted(all_families())
SUPPORTED = {
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"),
    *("Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM"),
    *("GPT2LMHeadModel", "GPTNeoXForCausalLM", "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
}
OTHERS = ("OPT", "Falcon", "Bloom", "Mpt")  # not registered, unless a file is added for them
VARIANTS: dict[str, dict[str, Any]] = {  # a family that does not use a key has the same tensors with and without it
    "default": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True, "qkv_bias": True, "qk_layernorm": True},
    "no biases": {"attention_bias": False, "mlp_bias": False, "qkv_bias": False},
    "one dense layer": {"mlp_only_layers": [1]},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "one layer": {"num_hidden_layers": 1},
}
VARIANTS["other"] = VARIANTS["untied"] | VARIANTS["biases"] | VARIANTS["one dense layer"]
VARIANTS["other"] |= {"use_parallel_residual": False, "num_hidden_layers": 2}
SWITCHED = {"biases": True, "other": True, "no biases": False}  # variant → value of a family's own switches
OPTIONAL = (
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "qk_layernorm", "mlp_only_layers"),
    *("decoder_sparse_step", "layer_types", "add_cross_attention", "use_parallel_residual"),
)
WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2, "sliding_window_pattern": 3}
TOKENS = torch.tensor([[5, 11, 2, 17, 39, 8, 30, 4, 22, 13]])


def switches(architecture: str) -> list[str]:
    """Keys of the family's config that add biases or norms, so that a new family is tested with and without them."""
    defaults = getattr(transformers, architecture).config_class().to_dict()
    return [key for key, value in defaults.items() if isinstance(value, bool) and ("bias" in key or "norm" in key)]


def changes(architecture: str, variant: str) -> dict[str, Any]:
    own = switches(architecture) if variant in SWITCHED else ()
    return VARIANTS[variant] | dict.fromkeys(own, SWITCHED.get(variant))


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: object) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if key not in drop}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def live(checkpoint: Checkpoint) -> tuple[Any, dict[str, torch.Tensor]]:
    model = build(checkpoint.folder, checkpoint.config, checkpoint.tensors, checkpoint.load, torch.float32)
    return model, targets(model, checkpoint.config, checkpoint.family, checkpoint.tensors)


def layers_of(model: Any, shape: ModelShape) -> list[Any]:
    first = next(tensor.name for tensor in shape.tensors if tensor.layer == 0)
    return list(model.get_submodule(first.split(".0.")[0]))


def calls(model: Any, layers: list[Any]) -> list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]]:
    """Run the model on TOKENS; return the arguments and the output of every layer."""
    seen: list[Any] = [None] * len(layers)

    def hook(index: int) -> Callable[..., None]:
        def remember(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            seen[index] = (args, kwargs, out[0] if isinstance(out, tuple) else out)

        return remember

    handles = [layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def test_the_supported_families_are_registered():
    assert set(ARCHITECTURES) >= SUPPORTED


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attributes_derived_from_layer_types_equal_the_familys(architecture, random_model):
    """Attributes of the body that differ between models with and without sliding windows."""

    def derived(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        checkpoint = Checkpoint.open(random_model(architecture, **WINDOWS, layer_types=[kind] * 3))
        model, _ = live(checkpoint)
        plain = {key: value for key, value in vars(model.base_model).items() if isinstance(value, bool | int | str)}
        layers = {"layer_types": getattr(model.config, "layer_types", None)}
        return plain, dict(checkpoint.family.layer_attributes(layers))

    (full, stated_full), (sliding, stated_sliding) = derived("full_attention"), derived("sliding_attention")
    differing = {key for key in full if full[key] != sliding.get(key)}
    assert differing == stated_full.keys() == stated_sliding.keys()
    assert {key: full[key] for key in differing} == stated_full
    assert {key: sliding[key] for key in differing} == stated_sliding


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shape_names_exactly_the_tensors_that_transformers_saves(architecture, variant, random_model):
    folder = random_model(architecture, **changes(architecture, variant))
    saved, checkpoint = load_file(folder / "model.safetensors"), Checkpoint.open(folder)
    assert set(checkpoint.shape.by_name) == saved.keys()
    assert len(checkpoint.shape.by_name) == len(checkpoint.shape.tensors)
    assert checkpoint.shape.architecture == architecture
    settings = transformers.AutoConfig.from_pretrained(folder)
    assert checkpoint.shape.num_layers == settings.num_hidden_layers
    assert checkpoint.shape.tied_embeddings is settings.tie_word_embeddings


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_missing_key_has_transformers_default(architecture, random_model):
    folder = random_model(architecture)
    before = Checkpoint.open(folder)
    optional = (*OPTIONAL, *switches(architecture))
    assert edit(folder, drop=optional).keys().isdisjoint(optional)
    after = Checkpoint.open(folder)
    assert after.shape == before.shape
    model, _ = live(after)
    assert model.config.tie_word_embeddings is after.shape.tied_embeddings


@pytest.mark.parametrize("variant", ["tied", "other"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_has_the_placement_of_its_family(architecture, variant, random_model):
    checkpoint = Checkpoint.open(random_model(architecture, **changes(architecture, variant)))
    model, found = live(checkpoint)
    names = {parameter: name for name, parameter in model.named_parameters()}
    covered = dict.fromkeys(names.values(), 0)
    for tensor in checkpoint.shape.tensors:
        assert torch.equal(found[tensor.name], checkpoint.load(tensor.name)), tensor.name
        placed = checkpoint.family.placement(tensor.name, checkpoint.config).parameter
        covered[placed] += found[tensor.name].numel()
        if tensor.layer is not None:
            assert model.get_parameter(placed) in set(layers_of(model, checkpoint.shape)[tensor.layer].parameters())
    assert covered == {name: parameter.numel() for parameter, name in names.items()}  # each element once

    def places(place: Place) -> set[str]:
        wanted = checkpoint.shape.names(place)
        return {checkpoint.family.placement(name, checkpoint.config).parameter for name in wanted}

    assert names[model.get_input_embeddings().weight] in places(Place.EMBEDDINGS)
    assert (names[model.get_output_embeddings().weight] in places(Place.HEAD)) is not checkpoint.shape.tied_embeddings
    assert checkpoint.shape.names(Place.FINAL_NORM)


@pytest.mark.parametrize("variant", ["default", "other"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_residual_update_is_linear_in_the_writing_tensors(architecture, variant, random_model):
    """With zero writers a layer adds nothing; halving the writers of attention or MLP halves the block's update."""
    checkpoint = Checkpoint.open(random_model(architecture, **changes(architecture, variant)))
    model, found = live(checkpoint)
    offset = checkpoint.family.writer_offset
    for index, layer in enumerate(layers_of(model, checkpoint.shape)):
        writers = [t.name for t in checkpoint.shape.tensors if t.layer == index and t.writes_residual]
        halves = [[name for name in writers if ("att" in name) is first] for first in (True, False)]
        assert all(halves)
        added = {}
        for half in (0, 1):
            for scale in (1.0, 0.5):
                for name in writers:
                    factor = scale if name in halves[half] else 0.0
                    found[name].copy_((checkpoint.load(name) + offset) * factor - offset)
                args, kwargs, out = calls(model, [layer])[0]
                added[half, scale] = out - (args[0] if args else kwargs["hidden_states"])
            assert added[half, 1.0].abs().max() > 1e-3
            torch.testing.assert_close(added[half, 0.5], added[half, 1.0] / 2, rtol=1e-4, atol=1e-5)
        for name in writers:
            found[name].fill_(-offset)
        args, kwargs, out = calls(model, [layer])[0]
        assert torch.equal(out, args[0] if args else kwargs["hidden_states"])


@pytest.mark.parametrize("variant", ["as saved", "as on the hub"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reordered_layers_compute_the_same_function(architecture, variant, random_model):
    folder = random_model(architecture, **WINDOWS, mlp_only_layers=[1], num_hidden_layers=4, decoder_sparse_step=2)
    if variant == "as on the hub":
        edit(folder, drop=("layer_types", "_sliding_window_pattern"), **WINDOWS)
    checkpoint, picked = Checkpoint.open(folder), [3, 0, 0, 1, 2]
    family = checkpoint.family
    config = family.with_layers(checkpoint.config, picked)
    changed = {key for key in config if config[key] != checkpoint.config.get(key)}
    assert changed <= set(family.of_layers)
    shape = family.shape(config)
    assert shape.num_layers == len(picked)

    def source(name: str) -> str:
        layer = shape.by_name[name].layer
        return name if layer is None else shape.at_layer(name, picked[layer])

    assert {source(name) for name in shape.by_name} == set(checkpoint.tensors)
    original, _ = live(checkpoint)
    moved = build(folder, config, shape.by_name, lambda name: checkpoint.load(source(name)), torch.float32)
    old_layers = layers_of(original, checkpoint.shape)
    before, after = calls(original, old_layers), calls(moved, layers_of(moved, shape))
    for place, layer in enumerate(picked):
        (args, kwargs, out), (_, old_kwargs, _) = after[place], before[layer]
        old_kwargs = {key: value for key, value in old_kwargs.items() if key != "hidden_states"}
        hidden = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            wanted = old_layers[layer](hidden, *before[layer][0][1:], **old_kwargs)
        torch.testing.assert_close(out, wanted[0] if isinstance(wanted, tuple) else wanted, rtol=0, atol=1e-6)


def test_reordering_is_rejected_if_attention_is_scaled_by_layer_index():
    family, config = all_families()["GPT2LMHeadModel"], {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True}
    assert family.with_layers(config, [0, 1])["n_layer"] == 2
    with pytest.raises(CheckpointError, match=r"config\.json: scale_attn_by_inverse_layer_idx: .*cannot change places"):
        family.with_layers(config, [1, 0])


EXTRAS = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
OLD_FORMS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "GPT2LMHeadModel": lambda tensors: (
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        | {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    ),
    "GPTNeoXForCausalLM": lambda tensors: (
        {name.replace("embed_out", "lm_head"): tensor for name, tensor in tensors.items()}
        | {f"gpt_neox.layers.0.attention.{name}": torch.ones(2) for name in ("bias", "masked_bias")}
        | {"gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(4)}
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_older_exports_are_read_as_the_same_model(architecture, random_model):
    folder = random_model(architecture)
    before = Checkpoint.open(folder).content_sha256()
    tensors = load_file(folder / "model.safetensors")
    older = OLD_FORMS.get(architecture, lambda tensors: tensors | EXTRAS)(tensors)
    assert older.keys() != tensors.keys()
    save_file(older, folder / "model.safetensors", {"format": "pt"})
    after = Checkpoint.open(folder)
    assert after.content_sha256() == before
    assert set(after.tensors) == set(after.shape.by_name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_copy_of_a_tied_head_is_ignored(architecture, random_model):
    folder = random_model(architecture, tie_word_embeddings=True)
    before, tensors = Checkpoint.open(folder), load_file(folder / "model.safetensors")
    ((head, original),) = before.family.tied.items()
    save_file(tensors | {head: tensors[original].clone()}, folder / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(folder).content_sha256() == before.content_sha256()


@pytest.mark.parametrize("name", [name for name in OTHERS if f"{name}ForCausalLM" not in ARCHITECTURES])
def test_an_unregistered_family_is_rejected_with_advice_on_adding_it(name):
    config = getattr(transformers, f"{name}Config")().to_dict() | {"architectures": [f"{name}ForCausalLM"]}
    with pytest.raises(CheckpointError) as caught:
        family_of(config, "m/config.json")
    text = str(caught.value)
    assert text.startswith(f"m/config.json: architectures: '{name}ForCausalLM' is not supported")
    assert all(architecture in text for architecture in ARCHITECTURES)
    assert "write a file in evosearch/checkpoints/families or an entry point of the group evosearch.families" in text
    assert "writes to the residual stream" in text


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("T5Config", "T5ForConditionalGeneration"),
        ("BartConfig", "BartForCausalLM"),
        ("LlavaConfig", "LlavaForConditionalGeneration"),
        ("Gemma3Config", "Gemma3ForConditionalGeneration"),
        ("WhisperConfig", "WhisperForConditionalGeneration"),
        ("BertConfig", "BertForMaskedLM"),
        ("LlamaConfig", "LlamaForSequenceClassification"),
    ],
)
def test_models_other_than_decoder_only_are_rejected(kind, architecture):
    config = getattr(transformers, kind)().to_dict() | {"architectures": [architecture]}
    with pytest.raises(CheckpointError, match=f"'{architecture}' is not a decoder-only language model") as caught:
        family_of(config, "m/config.json")
    assert f"Only decoder-only language models can be merged: {', '.join(ARCHITECTURES)}" in str(caught.value)
    assert "no encoder, vision or audio part" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention"),
        ("GPT2LMHeadModel", {"n_layer": 0}, "n_layer: got 0. A positive whole number up to 1024"),
        ("Qwen3ForCausalLM", {"attention_bias": "yes"}, "attention_bias: got 'yes'. true or false"),
        ("LlamaForCausalLM", {"tie_word_embeddings": 1}, "tie_word_embeddings: got 1. true or false"),
        ("MixtralForCausalLM", {"num_local_experts": 0}, "num_local_experts: got 0. A positive whole number"),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": [True]}, "mlp_only_layers: .*A list of layer indices"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 0}, "decoder_sparse_step: .*A positive whole number"),
    ],
)
def test_an_invalid_config_value_is_named(architecture, changes, message, random_model):
    folder = random_model(architecture)
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert caught.value.where == f"{folder / 'config.json'}: {next(iter(changes))}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "must be equal to the number of `layer_types`"),
        (
            {"intermediate_size": "24"},
            "'intermediate_size': TypeError: .* expected int, got str",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`"),
    ],
)
def test_a_config_that_transformers_rejects_is_named(changes, message, random_model):
    checkpoint = Checkpoint.open(random_model("Qwen2ForCausalLM"))
    config = {**checkpoint.config, **changes}
    with pytest.raises(CheckpointError, match=f"transformers cannot build this model: .*{message}") as caught:
        build(checkpoint.folder, config, checkpoint.tensors, checkpoint.load, torch.float32)
    assert caught.value.where == f"{checkpoint.folder / 'config.json'}: {next(iter(changes))}"
