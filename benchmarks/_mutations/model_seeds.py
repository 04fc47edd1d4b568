"""A small model, a fine-tune, an adapter and a tokenizer with every file that model folders have, to be mutated."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
    "dtype": "float32",
    "transformers_version": "5.0.0",
}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0, "do_sample": True, "temperature": 0.6}
GENERATION |= {"top_p": 0.9, "top_k": 20, "num_beams": 1, "max_length": 64, "repetition_penalty": 1.0}
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "up_proj"],
    "rank_pattern": {},
    "alpha_pattern": {r"layers\.\d+\.mlp.*": 6},
    "base_model_name_or_path": "base",
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "lora_dropout": 0.05,
    "inference_mode": True,
}
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz=?. "]
INDEX = "model.safetensors.index.json"


def write(folder: Path) -> None:
    """Write `base` (two shards), `expert` (one file) and `lora` into a folder."""
    weights = _weights()
    _write_model(folder / "base", weights, shards=2)
    draw = torch.Generator().manual_seed(1)
    moved = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw) for name, tensor in weights.items()}
    _write_model(folder / "expert", moved, shards=1)
    _write_adapter(folder / "lora", weights)


def _weights() -> dict[str, torch.Tensor]:
    width, mlp, rows = 32, 48, CONFIG["vocab_size"]
    sizes = {"q_proj": (width, width), "k_proj": (16, width), "v_proj": (16, width), "o_proj": (width, width)}
    layer = {f"self_attn.{name}": size for name, size in sizes.items()}
    layer |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}  # type: ignore[dict-item]
    named: dict[str, Any] = {f"model.layers.{i}.{name}.weight": size for i in (0, 1) for name, size in layer.items()}
    named |= {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    named |= {"lm_head.weight": (rows, width)}
    draw = torch.Generator().manual_seed(0)
    return {name: 0.1 * torch.randn(size, generator=draw) for name, size in named.items()}


def _write_model(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    names = sorted(weights)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    else:
        places = {
            name: f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors" for index, name in enumerate(names)
        }
        for file in set(places.values()):
            save_file({name: weights[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
        total = sum(4 * tensor.numel() for tensor in weights.values())
        _json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    _json(folder / "config.json", CONFIG)
    _json(folder / "generation_config.json", GENERATION)
    _write_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: org/base\n---\n# A model\n")


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: id for id, token in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.add_tokens(["<tool>"])
    made.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    _json(folder / "tokenizer_config.json", settings | {"model_max_length": int(1e30)})
    _json(folder / "special_tokens_map.json", special)
    _json(folder / "added_tokens.json", {"<tool>": len(WORDS)})
    _json(folder / "vocab.json", {token: id for id, token in enumerate(WORDS)})
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text(TEMPLATE)


def _write_adapter(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    draw, made = torch.Generator().manual_seed(2), {}
    for layer in (0, 1):
        for module in ("self_attn.q_proj", "mlp.up_proj"):
            rows, columns = weights[f"model.layers.{layer}.{module}.weight"].shape
            name = f"base_model.model.model.layers.{layer}.{module}"
            made[f"{name}.lora_A.weight"] = 0.1 * torch.randn((2, columns), generator=draw)
            made[f"{name}.lora_B.weight"] = 0.1 * torch.randn((rows, 2), generator=draw)
    save_file(made, folder / "adapter_model.safetensors", {"format": "pt"})
    _json(folder / "adapter_config.json", ADAPTER)


def copy(source: Path, target: Path) -> None:
    """Copy the three folders; a mutation may have put anything in the place of the last copy."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)


def _json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2))
