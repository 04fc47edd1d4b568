"""Gemma 2: norms before and after attention and MLP, tied by default, every second layer with a sliding window.

What a layer adds to the residual stream leaves a norm, h ← h + norm(o_proj(…)) · (1 + w): w scales it, o_proj does not.
"""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    FULL,
    GATE_UP,
    O_PROJ,
    QKV,
    SLIDING,
    TIED,
    Frame,
    Part,
    decoder,
    option,
    rotary_tables,
    tensors,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape

BEFORE = ("input_layernorm", "pre_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")


def shape(config: Config) -> ModelShape:
    """Every tensor of a Gemma 2 checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    bias = option(config, "attention_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*BEFORE),
            *tensors(*AFTER, writes=True),
            *tensors(*QKV, O_PROJ, bias=bias),
            *tensors(*GATE_UP, DOWN_PROJ),
        ]

    return decoder("Gemma2ForCausalLM", config, layer, Frame(tied=True))


def _attention(config: Config, layer: int) -> str:
    return FULL if layer % 2 else SLIDING


FAMILY = Family(
    ("Gemma2ForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    with_layers=with_attention_of(_attention),
    writer_offset=1.0,
)
