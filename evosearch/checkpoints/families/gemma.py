"""Gemma: Llama's tensors, tied by default. Embeddings are scaled by √hidden, and norms multiply by 1 + weight."""

from evosearch.checkpoints.families.parts import Frame, Part, family, llama_layer, option
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    bias = option(config, "attention_bias", False)
    return llama_layer(qkv_bias=bias, o_bias=bias)


FAMILY = family("GemmaForCausalLM", _layer, Frame(tied=True))
