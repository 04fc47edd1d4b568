"""Qwen2 and Qwen2.5: Llama's tensors, with biases only on queries, keys and values."""

from evosearch.checkpoints.families.parts import (
    Part,
    after_max_window_layers,
    family,
    llama_layer,
    sliding_flag,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    return llama_layer(qkv_bias=True)


FAMILY = family(
    "Qwen2ForCausalLM",
    _layer,
    with_layers=with_attention_of(after_max_window_layers),
    layer_attributes=sliding_flag,
)
