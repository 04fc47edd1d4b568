"""Llama: pre-norm decoder with RMSNorm, rotary positions and a gated MLP; optional biases and tied embeddings."""

from evosearch.checkpoints.families.parts import Part, family, gated_mlp, llama_layer, option
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    bias = option(config, "attention_bias", False)
    return llama_layer(qkv_bias=bias, o_bias=bias, mlp=gated_mlp(bias=option(config, "mlp_bias", False)))


FAMILY = family("LlamaForCausalLM", _layer, mergekit_biases=False)
