"""Qwen2 and Qwen2.5: Llama's tensors, with biases on queries, keys and values alone."""

from evosearch.checkpoints.families.parts import (
    DOWN_PROJ,
    GATE_UP,
    O_PROJ,
    PRE_NORMS,
    QKV,
    TIED,
    Part,
    after_max_window_layers,
    decoder,
    rotary_tables,
    tensors,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config, Family
from evosearch.recipe.shapes import ModelShape


def _layer(index: int) -> list[Part]:
    return [
        *tensors(*PRE_NORMS),
        *tensors(*QKV, bias=True),
        *tensors(O_PROJ, writes=True),
        *tensors(*GATE_UP),
        *tensors(DOWN_PROJ, writes=True),
    ]


def shape(config: Config) -> ModelShape:
    """Every tensor of a Qwen2 checkpoint.

    Raises:
        CheckpointError: the layer count or a switch is missing or absurd.
    """
    return decoder("Qwen2ForCausalLM", config, _layer)


FAMILY = Family(
    ("Qwen2ForCausalLM",),
    shape,
    tied=TIED,
    skipped=rotary_tables,
    with_layers=with_attention_of(after_max_window_layers),
)
