"""Qwen3-MoE: Qwen3's attention; routed experts without a shared expert, a dense MLP in some layers."""

from evosearch.checkpoints.families.moe import (
    OF_LAYERS,
    ROUTER_TRAINING,
    expert_count,
    experts,
    qwen_place,
    sparse,
    with_sparse,
)
from evosearch.checkpoints.families.parts import QK_NORMS, Part, family, gated_mlp, llama_layer, option, tensors
from evosearch.checkpoints.families.registry import Config, with_layers


def _layer(config: Config, index: int) -> list[Part]:
    bias, routed = option(config, "attention_bias", False), sparse(config, index)
    mlp = [*tensors("mlp.gate"), *experts("mlp", expert_count(config))] if routed else gated_mlp()
    return llama_layer(qkv_bias=bias, o_bias=bias, qk_norms=QK_NORMS, mlp=mlp)


FAMILY = family(
    "Qwen3MoeForCausalLM",
    _layer,
    placement=qwen_place,
    with_layers=with_sparse(with_layers),
    of_layers=OF_LAYERS,
    irrelevant_keys=ROUTER_TRAINING,
)
