"""Qwen3: Llama's tensors, with a norm on each head's queries and keys."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    TIED,
    Part,
    after_max_window_layers,
    decoder,
    option,
    rotary_tables,
    tensors,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape


def shape(config: Config) -> ModelShape:
    """Every tensor of a Qwen3 checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    bias = option(config, "attention_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*PRE_NORMS),
            *tensors(*QKV, bias=bias),
            *tensors(*QK_NORMS),
            *tensors(O_PROJ, bias=bias, writes=True),
            *tensors(*GATE_UP),
            *tensors(DOWN_PROJ, writes=True),
        ]

    return decoder("Qwen3ForCausalLM", config, layer)


FAMILY = Family(
    ("Qwen3ForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    with_layers=with_attention_of(after_max_window_layers),
)
