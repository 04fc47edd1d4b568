"""Qwen2-MoE and Qwen1.5-MoE: Qwen2's attention; routed and gated shared experts, or a dense MLP in some layers."""

from evosearch.checkpoints.families.moe import (
    OF_LAYERS,
    ROUTER_TRAINING,
    expert_count,
    experts,
    qwen_place,
    sparse,
    with_sparse,
)
from evosearch.checkpoints.families.parts import (
    FULL,
    SLIDING,
    Part,
    family,
    gated_mlp,
    llama_layer,
    option,
    tensors,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config

SHARED = "mlp.shared_expert"


def _layer(config: Config, index: int) -> list[Part]:
    mlp = _experts(config) if sparse(config, index) else gated_mlp()
    return llama_layer(qkv_bias=option(config, "qkv_bias", True), mlp=mlp)


def _experts(config: Config) -> list[Part]:
    return [
        *tensors("mlp.gate", "mlp.shared_expert_gate"),  # router (experts, hidden), and gate of the shared expert
        *experts("mlp", expert_count(config)),
        *tensors(f"{SHARED}.gate_proj", f"{SHARED}.up_proj"),
        *tensors(f"{SHARED}.down_proj", writes=True),
    ]


def _attention(config: Config, layer: int) -> str:
    slides = config.get("use_sliding_window") and layer < config.get("max_window_layers", 28)
    return SLIDING if slides and layer % 2 == 0 else FULL


FAMILY = family(
    "Qwen2MoeForCausalLM",
    _layer,
    placement=qwen_place,
    with_layers=with_sparse(with_attention_of(_attention)),
    of_layers=OF_LAYERS,
    irrelevant_keys=ROUTER_TRAINING,
)
