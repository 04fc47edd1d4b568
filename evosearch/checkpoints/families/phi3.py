"""Phi-3, Phi-3.5 and Phi-4: Llama's layers with fused queries, keys and values, and with fused gate and up."""

from evosearch.checkpoints.families.parts import Part, family, gated_mlp, llama_layer
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    return llama_layer(qkv=("self_attn.qkv_proj",), mlp=gated_mlp(gate_up=("mlp.gate_up_proj",)))


FAMILY = family("Phi3ForCausalLM", _layer, recomputes_cache=True)
