"""GPT-2: LayerNorm, learned positions, biases everywhere, tied by default; weights are stored (in, out).

Files of the base model, as the first ones on the hub, leave out `transformer.` and hold each layer's causal mask.
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


def _layer(config: Config, index: int) -> list[Part]:
    if option(config, "add_cross_attention", False):
        raise CheckpointError("config.json: add_cross_attention", "got true", "false: a language model by itself")
    return [
        *tensors("ln_1", "attn.c_attn", bias=True),
        *tensors("attn.c_proj", bias=True, writes=True),
        *tensors("ln_2", "mlp.c_fc", bias=True),
        *tensors("mlp.c_proj", bias=True, writes=True),
    ]


def canonical(name: str) -> str:
    """The name with the prefix that a file of the base model leaves out."""
    return f"transformer.{name}" if BARE.match(name) else name


def masks(name: str) -> bool:
    """The causal masks, which older exports stored beside the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def with_layers(config: Config, layers: Sequence[int], sources: Sequence[Config] | None = None) -> dict[str, Any]:
    """The config with these layers.

    Raises:
        CheckpointError: attention is scaled by a layer's position, and a layer would change its own.
    """
    if option(config, SCALED, False) and list(layers) != list(range(len(layers))):
        raise CheckpointError(f"config.json: {SCALED}", "got true: its layers cannot change places", "false")
    return dict(config) | {"n_layer": len(layers)}


FAMILY = family(
    "GPT2LMHeadModel",
    _layer,
    FRAME,
    skipped=masks,
    canonical=canonical,
    with_layers=with_layers,
    of_layers=("n_layer",),
    transposed=True,
)
