"""Gemma 3 text models: Gemma 2's norms, per-head QK norms, full attention in every sixth layer.

Norms multiply by 1 + weight: a layer computes h ← h + norm(o_proj(…)) · (1 + w). Logits can be soft-capped.
"""

from evosearch.checkpoints.families.parts import (
    BEFORE_NORMS,
    FULL,
    QK_NORMS,
    SLIDING,
    SOFT_CAP,
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
    "Gemma3ForCausalLM",
    _layer,
    Frame(tied=True),
    with_layers=with_attention_of(_attention),
    writer_offset=1.0,
    logits=SOFT_CAP,
)
