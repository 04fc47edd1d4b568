"""GPT-2: LayerNorm, learned positions, biases everywhere, tied by default. Linear weights are stored as (in, out).

Checkpoints of the bare GPT2Model, such as the original ones on the hub, omit the prefix `transformer.` and include the
causal masks.
"""

import re
from collections.abc import Sequence
from typing import Any

from evosearch.checkpoints.families.parts import Frame, Part, family, option, tensors
from evosearch.checkpoints.families.registry import Config
from evosearch.errors import CheckpointError

FRAME = Frame(
    layers="transformer.h",
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    final_norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
    tied=True,
    depth="n_layer",
)
BARE = re.compile(r"(wte|wpe|h|ln_f)\.")
SCALED = "scale_attn_by_inverse_layer_idx"
SUMMARY = (  # settings of a classification head
    *("summary_type", "summary_use_proj", "summary_activation"),
    *("summary_proj_to_labels", "summary_first_dropout"),
)


def _layer(config: Config, index: int) -> list[Part]:
    if option(config, "add_cross_attention", False):
        raise CheckpointError("config.json: add_cross_attention", "got true", "false: a decoder-only language model")
    return [
        *tensors("ln_1", "attn.c_attn", bias=True),
        *tensors("attn.c_proj", bias=True, writes=True),
        *tensors("ln_2", "mlp.c_fc", bias=True),
        *tensors("mlp.c_proj", bias=True, writes=True),
    ]


def canonical(name: str) -> str:
    """Return the name with the prefix that checkpoints of the bare model omit."""
    return f"transformer.{name}" if BARE.match(name) else name


def is_mask(name: str) -> bool:
    """Return whether a tensor is a causal mask, which older exports store."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
    """Return the config of a model with these layers.

    Raises:
        CheckpointError: Attention is scaled by layer index, and the index of a layer would change.
    """
    if option(config, SCALED, False) and list(layers) != list(range(len(layers))):
        raise CheckpointError(f"config.json: {SCALED}", "got true, so its layers cannot change places", "false")
    return dict(config) | {"n_layer": len(layers)}


FAMILY = family(
    "GPT2LMHeadModel",
    _layer,
    FRAME,
    skipped=is_mask,
    canonical=canonical,
    with_layers=with_layers,
    of_layers=("n_layer",),
    transposed=True,
    irrelevant_keys=SUMMARY,
)
