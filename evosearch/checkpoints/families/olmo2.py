"""OLMo 2: norms after attention and MLP alone, h ← h + norm(o_proj(…)) · g, and norms on all queries and keys."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    QK_NORMS,
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

AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")


def shape(config: Config) -> ModelShape:
    """Every tensor of an OLMo 2 checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    bias = option(config, "attention_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*QKV, O_PROJ, bias=bias),
            *tensors(*QK_NORMS),
            *tensors(*GATE_UP, DOWN_PROJ),
            *tensors(*AFTER, writes=True),
        ]

    return decoder("Olmo2ForCausalLM", config, layer)


FAMILY = Family(("Olmo2ForCausalLM",), shape, tied=TIED, skipped=rotary_tables)
