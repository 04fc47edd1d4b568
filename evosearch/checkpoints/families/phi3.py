"""Phi-3, Phi-3.5 and Phi-4: Llama's layers with queries, keys and values in one tensor, gate and up in another."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    O_PROJ,
    PRE_NORMS,
    TIED,
    Part,
    decoder,
    rotary_tables,
    tensors,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape


def _layer(index: int) -> list[Part]:
    return [
        *tensors(*PRE_NORMS, "self_attn.qkv_proj"),
        *tensors(O_PROJ, writes=True),
        *tensors("mlp.gate_up_proj"),
        *tensors(DOWN_PROJ, writes=True),
    ]


def shape(config: Config) -> ModelShape:
    """Every tensor of a Phi-3 checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    return decoder("Phi3ForCausalLM", config, _layer)


FAMILY = Family(("Phi3ForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
