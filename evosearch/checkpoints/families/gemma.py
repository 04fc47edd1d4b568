"""Gemma: Llama's tensors, tied by default; embeddings are scaled by √hidden, and norms multiply by 1 + weight."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QKV,
    TIED,
    Frame,
    Part,
    decoder,
    option,
    rotary_tables,
    tensors,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape


def shape(config: Config) -> ModelShape:
    """Every tensor of a Gemma checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    bias = option(config, "attention_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*PRE_NORMS),
            *tensors(*QKV, bias=bias),
            *tensors(O_PROJ, bias=bias, writes=True),
            *tensors(*GATE_UP),
            *tensors(DOWN_PROJ, writes=True),
        ]

    return decoder("GemmaForCausalLM", config, layer, Frame(tied=True))


FAMILY = Family(("GemmaForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
