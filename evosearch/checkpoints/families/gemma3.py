"""Gemma 3, the text models: Gemma 2's norms, and norms on each head's queries and keys; every sixth attends fully.

Norms multiply by 1 + weight: what a layer adds is h ← h + norm(o_proj(…)) · (1 + w).
"""

from evosearch.checkpoints.families.parts import (
    BEFORE_NORMS,
    FULL,
    QK_NORMS,
    SLIDING,
    Frame,
    Part,
    family,
    normed_after_layer,
    option,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config, positive

PATTERN = "sliding_window_pattern"


def _layer(config: Config, index: int) -> list[Part]:
    return normed_after_layer(BEFORE_NORMS, bias=option(config, "attention_bias", False), qk_norms=QK_NORMS)


def _attention(config: Config, layer: int) -> str:
    every = positive(config, PATTERN) if PATTERN in config else 6
    return SLIDING if (layer + 1) % every else FULL


FAMILY = family(
    "Gemma3ForCausalLM", _layer, Frame(tied=True), with_layers=with_attention_of(_attention), writer_offset=1.0
)
