"""Tiny random Llama checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Make a checkpoint folder: `tiny("name", seed=0, tie_word_embeddings=True, max_shard_size="20KB")`."""

    def make(name: str, seed: int = 0, max_shard_size: str = "5GB", **config: object) -> Path:
        settings: dict[str, object] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | config))
        model.save_pretrained(tmp_path / name, max_shard_size=max_shard_size)
        return tmp_path / name

    return make
