"""Applied adapters give peft's weights; unsupported settings are rejected by name."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evosearch.checkpoints.adapters.adapted_model import apply_adapter
from evosearch.checkpoints.overlay import Overlay
from evosearch.checkpoints.reader import Checkpoint
from evosearch.errors import CheckpointError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, out: Path, **settings: Any) -> Path:
    """Save an adapter with peft, with every trained tensor far from its initial value."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's guesses about layers and embeddings
        adapted = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | settings)))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data = (parameter.data + noise.abs() if "magnitude" in name else noise).contiguous()
        adapted.save_pretrained(out)
    return out


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        return dict(model.merge_and_unload().state_dict())


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


@pytest.fixture
def pair(tiny, tmp_path) -> tuple[Path, Path]:
    base = tiny("base")
    return base, make_adapter(base, tmp_path / "lora")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank": {"h.0.attn.c_attn": 2, "layers.1.self_attn.q_proj": 2, "up_proj": 3}},
        {"alpha": {"layers.0.*": 9, "c_fc": 11}},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
    ids=lambda settings: "-".join(f"{key}" for key in settings) or "plain",
)
def test_layers_equal_peft(kind, settings, tiny, tmp_path):
    base = tiny("base", attention_bias=True) if kind == "llama" else make_gpt2(tmp_path / "base")
    settings = dict(settings)
    patterns = {f"{key}_pattern": settings.pop(key) for key in ("rank", "alpha") if key in settings}
    more = {} if kind == "llama" else {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    adapter = make_adapter(base, tmp_path / "lora", **settings, **patterns, **more)
    check_equal(base, adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "use_dora": True},
        {"target_modules": "model.layers.1.*(q|v)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"], "bias": "all"},
    ],
    ids=["lora", "dora", "saved", "saved-dora", "regex", "some-layers", "saved-with-bias"],
)
def test_embeddings_head_and_saved_modules_equal_peft(settings, tiny, tmp_path):
    base = tiny("base", attention_bias="bias" in settings)
    check_equal(base, make_adapter(base, tmp_path / "lora", **settings))


def check_equal(base: Path, adapter: Path) -> None:
    opened = Checkpoint.open(base)
    result, expected = apply_adapter(opened, adapter, "base+lora"), merged_by_peft(base, adapter)
    changed = 0
    for name in opened.tensors:
        torch.testing.assert_close(result.load(name), expected[name], rtol=1e-6, atol=1e-6)
        assert tuple(result.load(name).shape) == result.tensors[name].shape
        changed += not torch.equal(opened.load(name), result.load(name))
        assert (result.shares(name) is opened) == torch.equal(opened.load(name), result.load(name))
    assert changed >= 1


def test_fan_in_fan_out_is_overridden_by_the_layer_type_as_in_peft(tmp_path):
    base = make_gpt2(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "lora", target_modules=["attn.c_proj"], fan_in_fan_out=True)
    edit(adapter, fan_in_fan_out=False)  # the shape of a square weight does not show it
    check_equal(base, adapter)


def test_a_tied_head_accepts_equal_copies_and_rejects_separate_changes(tiny, tmp_path):
    base = tiny("base", tie_word_embeddings=True)
    saved = make_adapter(base, tmp_path / "saved", modules_to_save=["embed_tokens"])

    def copy_to_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.model.embed_tokens.weight"].clone()

    with pytest.raises(
        CheckpointError, match=r"adapter_model\.safetensors: 'model\.embed_tokens\.weight' and 'lm_head"
    ):
        apply_adapter(Checkpoint.open(base), saved, "x")
    edit_tensors(saved, copy_to_head)
    result = apply_adapter(Checkpoint.open(base), saved, "x")
    stored = load_file(saved / WEIGHTS)["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(result.load("model.embed_tokens.weight"), stored)
    assert "lm_head.weight" not in result.tensors
    for module in ("lm_head", "embed_tokens"):
        adapter = make_adapter(base, tmp_path / module, target_modules=["q_proj", module])
        with pytest.raises(CheckpointError, match=rf"LoRA on '(model\.)?{module}', which shares its weight with"):
            apply_adapter(Checkpoint.open(base), adapter, "x")


def test_bfloat16_adapters_are_applied_in_float32(pair, tmp_path):
    base, adapter = pair
    narrow = tmp_path / "narrow"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(narrow)

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = (tensors[name] * 1e-2).bfloat16()

    edit_tensors(adapter, halve)
    opened = Checkpoint.open(narrow)
    result = apply_adapter(opened, adapter, "x")
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(adapter / WEIGHTS)
    a, b = (stored[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"].float() for part in "AB")
    theta = opened.load(name).float()
    assert (result.tensors[name].dtype, result.load(name).dtype) == ("F32", torch.float32)
    torch.testing.assert_close(result.load(name) - theta, 1.5 * b @ a, rtol=1e-3, atol=1e-8)
    kept = result.load(name).bfloat16().float() != theta
    assert kept.float().mean() < 0.05  # rounding to the base's dtype would lose most of the adapter
    assert result.tensors["model.norm.weight"].dtype == "BF16"


def test_the_content_hash_covers_base_tensors_and_scale_only(pair, tiny):
    base, adapter = pair

    def content(folder: Path = base) -> str:
        return apply_adapter(Checkpoint.open(folder), adapter, "x").content_sha256()

    first = content()
    assert first not in (content(tiny("other", seed=3)), Checkpoint.open(base).content_sha256())
    edit(adapter, lora_dropout=0.3, base_model_name_or_path="elsewhere", lora_alpha=12, alpha_pattern={".*": 6})
    assert content() == first
    edit(adapter, alpha_pattern={})
    assert content() != first
    edit(adapter, lora_alpha=6)
    edit_tensors(adapter, lambda tensors: next(iter(tensors.values())).add_(1))
    assert content() != first


def test_a_base_other_than_the_adapters_own_gives_a_note(pair):
    base, adapter = pair
    assert apply_adapter(Checkpoint.open(base), adapter, "x").notes == ()
    assert apply_adapter(Checkpoint.open(base, "org/BASE@v2"), adapter, "x").notes == ()
    edit(adapter, base_model_name_or_path="org/Another")
    model = apply_adapter(Checkpoint.open(base, "org/base"), adapter, "org/base+lora")
    assert (model.reference, model.folder) == ("org/base+lora", base)
    assert model.notes == (f"{adapter / CONFIG}: trained on 'org/Another', applied to 'org/base'",)
    assert Overlay(model, "y", lambda: "", {}).notes == model.notes


def test_pickled_adapters_are_read_only_if_allowed(pair):
    base, adapter = pair
    expected = apply_adapter(Checkpoint.open(base), adapter, "x")
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"lora: only pickled weights.*--allow-pickle"):
        apply_adapter(Checkpoint.open(base), adapter, "x")
    result = apply_adapter(Checkpoint.open(base), adapter, "x", allow_pickle=True)
    assert result.content_sha256() == expected.content_sha256()
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lora: no weights\. adapter_model\.safetensors"):
        apply_adapter(Checkpoint.open(base), adapter, "x")


def test_expert_names_of_older_transformers_are_accepted(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path / "base")
    name = "model.layers.0.block_sparse_moe.experts.1.w2"
    a, b = torch.randn(2, 24), torch.randn(16, 2)
    (tmp_path / "lora").mkdir()
    prefix = f"base_model.model.{name}"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, tmp_path / "lora" / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": ["w2"]}
    (tmp_path / "lora" / CONFIG).write_text(json.dumps(config))
    base = Checkpoint.open(tmp_path / "base")
    result = apply_adapter(base, tmp_path / "lora", "x")
    torch.testing.assert_close(result.load(f"{name}.weight"), base.load(f"{name}.weight") + 0.5 * b @ a)
    assert [tensor for tensor in base.tensors if result.shares(tensor) is None] == [f"{name}.weight"]


def test_fully_saved_experts_are_sliced_from_the_live_models_stacks(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path / "base")
    adapter = make_adapter(
        tmp_path / "base", tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["mlp.experts"]
    )
    base, expected = Checkpoint.open(tmp_path / "base"), merged_by_peft(tmp_path / "base", adapter)
    result = apply_adapter(base, adapter, "x")
    for name in base.tensors:
        place = base.family.placement(name, base.config)
        torch.testing.assert_close(result.load(name), expected[place.parameter][place.index], rtol=1e-6, atol=1e-6)
    changed = {name for name in base.tensors if result.shares(name) is None}
    assert len(changed) == 2 * 3 + 1
    assert "model.layers.0.block_sparse_moe.experts.1.w3.weight" in changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA' is not supported. LORA"),
        ({"peft_type": None}, "peft_type: None is not supported"),
        ({"lora_bias": True}, "lora_bias: biases of lora_B are not supported"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication: repeated layers are not supported"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters: LoRA on parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: training of individual token embeddings"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens: an activated LoRA"),
        ({"kasa_config": {"beta": 1}}, "kasa_config: got .*not supported"),
        ({"use_new_trick": True}, "use_new_trick: got True, which is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: 'pissa_niter_16' changed the base"),
        ({"r": 0}, "r: got 0. A positive whole number"),
        ({"lora_alpha": "16"}, "lora_alpha: got '16'. A number"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern\.q_proj: got 2\.5"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: '\\(' is not a valid regular expression"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: got 'lm_head'. A list"),
        ({"bias": "some"}, "bias: got 'some'. none, all or lora_only"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsupported_settings_are_rejected_by_name(pair, changes, message):
    base, adapter = pair
    edit(adapter, **changes)
    with pytest.raises(CheckpointError, match=rf"lora/adapter_config\.json: {message}"):
        apply_adapter(Checkpoint.open(base), adapter, "x")


Q = "base_model.model.model.layers.1.self_attn.q_proj"
BROKEN: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (lambda t: t.pop(f"{Q}.lora_B.weight"), rf"tensor '{Q}\.lora_B\.weight' is missing"),
    (
        lambda t: [t.pop(f"{Q}.lora_{part}.weight") for part in "AB"],
        rf"tensor '{Q}\.lora_A\.weight' is missing.*requires it",
    ),
    (lambda t: t.clear(), r"tensor '.*lora_A\.weight' is missing \(and 13 more\)"),
    (
        lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(3, 32)}),
        rf"'{Q}\.lora_A\.weight' is 3×32\. Rank 4, as adapter_config\.json says",
    ),
    (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(31, 4)}), "gives 31×32, but .*base has 32×32"),
    (
        lambda t: t.update({Q.replace("layers.1", "layers.7") + ".lora_A.weight": torch.ones(4, 32)}),
        r"is for 'model\.layers\.7\.self_attn\.q_proj\.weight', which .*base does not have.*It was trained on",
    ),
    (lambda t: t.update({"foreign": torch.ones(2)}), "tensor 'foreign' is for 'foreign', which"),
    (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32).int()}), "is stored as I32. One of F64"),
    (lambda t: t.update({f"{Q}.lora_diag": torch.ones(4)}), r"lora_diag' is not part of a supported LoRA\. M\.lora_A"),
    (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(108, 32)}),
        "gives 108×32, but .*base has 100×32. An adapter that changed the vocabulary cannot be applied",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_damaged_adapter_tensors_give_one_error_that_names_the_file(pair, damage, message):
    base, adapter = pair
    edit_tensors(adapter, damage)
    with pytest.raises(CheckpointError, match=rf"lora/adapter_model\.safetensors: {message}|lora/.*{message}"):
        apply_adapter(Checkpoint.open(base), adapter, "x")


def test_tensors_that_contradict_the_config_are_rejected(pair):
    base, adapter = pair
    edit(adapter, use_dora=True)
    with pytest.raises(CheckpointError, match=r"tensor '.*lora_magnitude_vector' is missing"):
        apply_adapter(Checkpoint.open(base), adapter, "x")
    edit(adapter, use_dora=False, modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"tensor '.*lm_head\.weight' is missing"):
        apply_adapter(Checkpoint.open(base), adapter, "x")
    edit(adapter, modules_to_save=None)
    edit_tensors(adapter, lambda tensors: tensors.update({f"{Q}.lora_magnitude_vector": torch.ones(32)}))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: use_dora: not set, though"):
        apply_adapter(Checkpoint.open(base), adapter, "x")
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: not a complete safetensors file"):
        apply_adapter(Checkpoint.open(base), adapter, "x")
