"""Qwen3: Llama's tensors, with per-head QK norms."""

from evosearch.checkpoints.families.parts import (
    QK_NORMS,
    Part,
    after_max_window_layers,
    family,
    llama_layer,
    option,
    sliding_flag,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    bias = option(config, "attention_bias", False)
    return llama_layer(qkv_bias=bias, o_bias=bias, qk_norms=QK_NORMS)


FAMILY = family(
    "Qwen3ForCausalLM",
    _layer,
    with_layers=with_attention_of(after_max_window_layers),
    layer_attributes=sliding_flag,
)
