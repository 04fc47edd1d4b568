"""Qwen2-MoE and Qwen1.5-MoE: Qwen2's attention; routed experts and a shared, gated one, or in some layers an MLP."""

from evosearch.checkpoints.families.moe import OF_LAYERS, expert_count, experts, qwen_place, sparse, with_sparse
from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    FULL,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QKV,
    SLIDING,
    TIED,
    Part,
    decoder,
    option,
    rotary_tables,
    tensors,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape

SHARED = "mlp.shared_expert"


def shape(config: Config) -> ModelShape:
    """Every tensor of a Qwen2-MoE checkpoint.

    Raises:
        CheckpointError: the count of layers or experts, or a switch, is missing or absurd.
    """
    count, bias = expert_count(config), option(config, "qkv_bias", True)
    dense = [*tensors(*GATE_UP), *tensors(DOWN_PROJ, writes=True)]
    routed = [
        *tensors("mlp.gate", "mlp.shared_expert_gate"),  # the router (experts, hidden), and how much of the shared one
        *experts("mlp", count),
        *tensors(f"{SHARED}.gate_proj", f"{SHARED}.up_proj"),
        *tensors(f"{SHARED}.down_proj", writes=True),
    ]

    def layer(index: int) -> list[Part]:
        attention = [*tensors(*PRE_NORMS), *tensors(*QKV, bias=bias), *tensors(O_PROJ, writes=True)]
        return attention + (routed if sparse(config, index) else dense)

    return decoder("Qwen2MoeForCausalLM", config, layer)


def _attention(config: Config, layer: int) -> str:
    slides = config.get("use_sliding_window") and layer < config.get("max_window_layers", 28)
    return SLIDING if slides and layer % 2 == 0 else FULL


FAMILY = Family(
    ("Qwen2MoeForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    placement=qwen_place,
    with_layers=with_sparse(with_attention_of(_attention)),
    of_layers=OF_LAYERS,
)
