"""Gemma 2: norms before and after attention and MLP, tied by default, sliding-window attention in every second layer.

Norms multiply by 1 + weight: a layer computes h ← h + norm(o_proj(…)) · (1 + w). Logits are soft-capped.
"""

from evosearch.checkpoints.families.parts import (
    BEFORE_NORMS,
    FULL,
    SLIDING,
    SOFT_CAP,
    Frame,
    Part,
    family,
    normed_after_layer,
    option,
    with_attention_of,
)
from evosearch.checkpoints.families.registry import Config


def _layer(config: Config, index: int) -> list[Part]:
    return normed_after_layer(BEFORE_NORMS, bias=option(config, "attention_bias", False))


def _attention(config: Config, layer: int) -> str:
    return FULL if layer % 2 else SLIDING


FAMILY = family(
    "Gemma2ForCausalLM",
    _layer,
    Frame(tied=True),
    with_layers=with_attention_of(_attention),
    writer_offset=1.0,
    logits=SOFT_CAP,
)
