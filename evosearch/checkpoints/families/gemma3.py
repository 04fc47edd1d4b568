"""Gemma 3, the text models: Gemma 2's norms, and norms on each head's queries and keys; every sixth attends fully.

What a layer adds to the residual stream leaves a norm, h ← h + norm(o_proj(…)) · (1 + w): w scales it, o_proj does not.
"""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    FULL,
    GATE_UP,
    O_PROJ,
    QK_NORMS,
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
from evosearch.checkpoints.families.registry import Config, Family, positive
from evosearch.recipe.shapes import ModelShape

BEFORE = ("input_layernorm", "pre_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
PATTERN = "sliding_window_pattern"


def shape(config: Config) -> ModelShape:
    """Every tensor of a Gemma 3 text checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    bias = option(config, "attention_bias", False)

    def layer(index: int) -> list[Part]:
        return [
            *tensors(*BEFORE),
            *tensors(*AFTER, writes=True),
            *tensors(*QKV, O_PROJ, bias=bias),
            *tensors(*QK_NORMS, *GATE_UP, DOWN_PROJ),
        ]

    return decoder("Gemma3ForCausalLM", config, layer, Frame(tied=True))


def _attention(config: Config, layer: int) -> str:
    every = positive(config, PATTERN) if PATTERN in config else 6
    return SLIDING if (layer + 1) % every else FULL


FAMILY = Family(
    ("Gemma3ForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    with_layers=with_attention_of(_attention),
    writer_offset=1.0,
)
