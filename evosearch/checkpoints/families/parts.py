"""What families have in common: the names of a decoder's tensors, and layers that differ in kind of attention.

No family by itself. A family file lists its layer's tensors with `tensors`, and `decoder` puts the rest around them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evosearch.checkpoints.families.registry import Config, positive, with_layers
from evosearch.errors import CheckpointError
from evosearch.recipe.shapes import ModelShape, Place, TensorSpec

Part = tuple[str, bool]  # a tensor's name within its layer, and whether it writes to the residual stream

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
O_PROJ = "self_attn.o_proj"
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN_PROJ = "mlp.down_proj"
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")  # before attention, before the MLP

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Frame:
    """What stands around the layers, by name on disk.

    Attributes:
        layers: what the layers' names start with, before the index.
        tied: whether the head repeats the embeddings where config.json does not say.
        head_bias: stays the head's own where the weight is tied.
        depth: the key of config.json with the number of layers.
    """

    layers: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens.weight",)
    final_norm: tuple[str, ...] = ("model.norm.weight",)
    head: str = "lm_head.weight"
    head_bias: tuple[str, ...] = ()
    tied: bool = False
    depth: str = "num_hidden_layers"


FRAME = Frame()
TIED = {FRAME.head: FRAME.embeddings[0]}


def tensors(*modules: str, bias: bool = False, writes: bool = False) -> list[Part]:
    """The weight of each module, and its bias."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [(f"{module}.{kind}", writes) for module in modules for kind in kinds]


def decoder(
    architecture: str, config: Config, layer: Callable[[int], Iterable[Part]], frame: Frame = FRAME
) -> ModelShape:
    """Every tensor of a checkpoint.

    Args:
        layer: index → that layer's tensors.

    Raises:
        CheckpointError: the layer count is missing or absurd.
    """
    depth, tied = positive(config, frame.depth), option(config, "tie_word_embeddings", frame.tied)
    found = [TensorSpec(name, Place.EMBEDDINGS) for name in frame.embeddings]
    for index in range(depth):
        parts = layer(index)
        found += [TensorSpec(f"{frame.layers}.{index}.{name}", Place.LAYER, index, writes) for name, writes in parts]
    found += [TensorSpec(name, Place.FINAL_NORM) for name in frame.final_norm]
    head = frame.head_bias if tied else (frame.head, *frame.head_bias)
    found += [TensorSpec(name, Place.HEAD) for name in head]
    return ModelShape(architecture, depth, tuple(found), tied)


def option(config: Config, key: str, default: bool) -> bool:
    """A switch of a config; `default` is what transformers takes where the key is missing, while null is no.

    Raises:
        CheckpointError: it is neither true, false nor null.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}", f"got {value!r}", "true or false")
    return bool(value)


def rotary_tables(name: str) -> bool:
    """Rotary frequencies, which older exports stored beside the weights: they follow from the config."""
    return name.endswith("rotary_emb.inv_freq")


def with_attention_of(kind: Callable[[Config, int], str]) -> Callable[[Config, Sequence[int]], dict[str, Any]]:
    """`with_layers` for a family whose layers differ in attention by position where config.json has no `layer_types`.

    The kinds are written out, as they would otherwise follow the layers' new positions.
    """

    def changed(config: Config, layers: Sequence[int]) -> dict[str, Any]:
        if isinstance(config.get("layer_types"), list):
            return with_layers(config, layers)
        return with_layers(config, layers) | {"layer_types": [kind(config, layer) for layer in layers]}

    return changed


def after_max_window_layers(config: Config, layer: int) -> str:
    """Qwen2 and Qwen3: a sliding window, where one is used, in the layers from `max_window_layers` on."""
    slides = config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None
    return SLIDING if slides and layer >= config.get("max_window_layers", 28) else FULL
