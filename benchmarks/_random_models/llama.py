"""Random Llama models on disk, with a tokenizer of whole words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._made_up_suites.settings import WORDS

SPREAD, MOVED = 0.02, 0.002  # standard deviation of a base's weights, and of a fine-tune's changes
RANK = 16
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; its embeddings are tied unless it says otherwise."""

    name: str
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    dtype: str
    tied: bool = True

    @property
    def config(self) -> dict[str, Any]:
        """Contents of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": self.dtype,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name → size of every tensor."""
        from evosearch.checkpoints.families.registry import family_of

        kv = self.width // self.heads * self.kv_heads
        sizes = {
            "q_proj": (self.width, self.width),
            "k_proj": (kv, self.width),
            "v_proj": (kv, self.width),
            "o_proj": (self.width, self.width),
            "gate_proj": (self.mlp, self.width),
            "up_proj": (self.mlp, self.width),
            "down_proj": (self.width, self.mlp),
            "embed_tokens": (self.vocabulary, self.width),
            "lm_head": (self.vocabulary, self.width),
        }
        names = family_of(self.config, self.name).shape(self.config).by_name
        return {name: sizes.get(name.split(".")[-2], (self.width,)) for name in names}

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(torch.Size(size).numel() for size in self.tensors().values())


SMALL = Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, "float32")
BILLION = Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 128256, "bfloat16")


def write_model(folder: Path, shape: Shape, seed: int, base: Path | None = None) -> Path:
    """Write a random model, or a random fine-tune of a base; return its folder."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    dtype = getattr(torch, shape.dtype)
    before = safe_open(base / "model.safetensors", "pt") if base else None
    for name, size in shape.tensors().items():
        noise = torch.empty(size).normal_(0.0, MOVED if base else SPREAD, generator=generator)
        start = before.get_tensor(name).float() if before else float(len(size) == 1)  # type: ignore[no-untyped-call]
        tensors[name] = noise.add_(start).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.config))
    _tokenizer().save_pretrained(folder)
    return folder


def write_adapter(folder: Path, shape: Shape, seed: int) -> Path:
    """Write a random LoRA on every projection of a model; return its folder."""
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, size in shape.tensors().items():
        if name.split(".")[-2] in PROJECTIONS:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.02 * torch.randn((RANK, size[1]), generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.02 * torch.randn((size[0], RANK), generator=generator)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": PROJECTIONS}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *dict.fromkeys([*WORDS.split(), "Question", "Answer", *"ABCD", *"?:."])]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
