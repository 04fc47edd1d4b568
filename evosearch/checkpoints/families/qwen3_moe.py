"""Qwen3-MoE: Qwen3's attention; routed experts without a shared one, or in some layers an MLP."""

from evosearch.checkpoints.families.moe import OF_LAYERS, expert_count, experts, qwen_place, sparse, with_sparse
from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    TIED,
    Part,
    decoder,
    option,
    rotary_tables,
    tensors,
)
from evosearch.checkpoints.families.registry import Config, Family, with_layers
from evosearch.recipe.shapes import ModelShape


def shape(config: Config) -> ModelShape:
    """Every tensor of a Qwen3-MoE checkpoint.

    Raises:
        CheckpointError: the count of layers or experts, or a switch, is missing or absurd.
    """
    count, bias = expert_count(config), option(config, "attention_bias", False)
    dense = [*tensors(*GATE_UP), *tensors(DOWN_PROJ, writes=True)]
    routed = [*tensors("mlp.gate"), *experts("mlp", count)]

    def layer(index: int) -> list[Part]:
        attention = [*tensors(*PRE_NORMS, *QK_NORMS), *tensors(*QKV, bias=bias)]
        return attention + tensors(O_PROJ, bias=bias, writes=True) + (routed if sparse(config, index) else dense)

    return decoder("Qwen3MoeForCausalLM", config, layer)


FAMILY = Family(
    ("Qwen3MoeForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    placement=qwen_place,
    with_layers=with_sparse(with_layers),
    of_layers=OF_LAYERS,
)
