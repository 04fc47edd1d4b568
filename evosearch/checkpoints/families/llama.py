"""Llama: pre-norm decoder, RMSNorm, rotary positions, gated MLP; grouped queries, biases, tied embeddings optional."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QKV,
    TIED,
    Part,
    decoder,
    option,
    rotary_tables,
    tensors,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape


def shape(config: Config) -> ModelShape:
    """Every tensor of a Llama checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    attention_bias, mlp_bias = option(config, "attention_bias", False), option(config, "mlp_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*PRE_NORMS),
            *tensors(*QKV, bias=attention_bias),
            *tensors(O_PROJ, bias=attention_bias, writes=True),  # h ← h + o_proj(attention)
            *tensors(*GATE_UP, bias=mlp_bias),
            *tensors(DOWN_PROJ, bias=mlp_bias, writes=True),  # h ← h + down_proj(act(gate) · up)
        ]

    return decoder("LlamaForCausalLM", config, layer)


FAMILY = Family(("LlamaForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
