"""Mistral: Llama's tensors without biases; a sliding window, where there is one, is the same in every layer."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QKV,
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
        *tensors(*PRE_NORMS, *QKV),
        *tensors(O_PROJ, writes=True),
        *tensors(*GATE_UP),
        *tensors(DOWN_PROJ, writes=True),
    ]


def shape(config: Config) -> ModelShape:
    """Every tensor of a Mistral checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    return decoder("MistralForCausalLM", config, _layer)


FAMILY = Family(("MistralForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
